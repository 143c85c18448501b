# make setup    install into .venv
# make lab      open JupyterLab on the labs       make lab ARGS="--no-browser --port 8899"
PYTHON ?= python3
EXTRA = lab
ARGS ?=
IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: setup lab
setup: .venv/.installed

lab: setup
	$(IN_VENV) python -m course.welcome $(ARGS)

.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed;" \
	"$(PYTHON) is $$($(PYTHON) -V 2>&1). If another one is installed, name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment." \
	"On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }

.venv/.installed: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time this takes some minutes."
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRA)]" -c constraints.txt
	@touch $@

# ---- for authors and instructors: the students' repository has no more than what is above
# make build    labs/ from solutions/             make build ARGS=--check
# make test     every test                        make test ARGS="tests/test_build.py -x"
# make verify   the course's proof of itself      make verify ARGS="11 --mutants"
# make demo     grade a small class without a person
# make book     the course as a static site      make book ARGS=--links
# make pictures docs/welcome.png and docs/lab.png, as a browser shows them
EXTRA = dev
.PHONY: build test verify demo book pictures
lab: .venv/.built

.venv/.built: .venv/.installed $(wildcard solutions/*/*.* autograder/*.py course/spec/*.py course/syllabus.toml)
	$(IN_VENV) autograder build
	@touch $@

build: setup
	$(IN_VENV) autograder build $(ARGS)

test: setup
	$(IN_VENV) python -m pytest $(ARGS)

verify: setup
	$(IN_VENV) autograder verify $(ARGS)

demo: setup
	$(IN_VENV) autograder demo $(ARGS)

book: .venv/.built
	$(IN_VENV) autograder book $(ARGS)

pictures: setup
	$(IN_VENV) TRAINFAST_PICTURES=build/pictures python -m pytest tests/browser -k student
	cp build/pictures/welcome.png build/pictures/lab.png docs/
