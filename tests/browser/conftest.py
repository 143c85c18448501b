"""A real JupyterLab on a small course, and a real browser.

`make pictures` keeps what the browser shows: TRAINFAST_PICTURES names the folder, TRAINFAST_THEME=dark makes it dark.
"""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from autograder import build
from autograder.grade import ROOT

DARK = os.environ.get("TRAINFAST_THEME") == "dark"
SMALL = "11_doubling"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed (on Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=60_000)
        # Chromium's own sandbox refuses to start for root. The pages are ours.
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


@pytest.fixture(scope="session")
def root(tmp_path_factory, write_course) -> Path:
    """The folder of a course: the small lab with its solution, and the labs of this repository as students get them.
    """
    root = write_course(tmp_path_factory.mktemp("browser"))
    build.build(root / "solutions" / SMALL, root)
    (root / "nbgrader_config.py").write_text(f'load_subconfig("nbgrader_config.py", path={str(ROOT)!r})\n')
    for folder in (ROOT / "labs").iterdir():
        shutil.copytree(folder, root / "labs" / folder.name)
    return root


@pytest.fixture(scope="session")
def address(root, tmp_path_factory) -> str:
    """Where `make lab` serves the course; nobody's own settings of Jupyter take part."""
    own = tmp_path_factory.mktemp("jupyter")
    environment = {**os.environ, **{name: str(own / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}}
    settings = own / "JUPYTER_CONFIG_DIR" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": f"JupyterLab {'Dark' if DARK else 'Light'}"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (own / "server.log").open("w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "course.welcome", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
                                   "--IdentityProvider.token=secret"], cwd=root, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                assert server.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=secret", timeout=10)
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            family = [server, *(psutil.Process(server.pid).children(recursive=True) if server.poll() is None else [])]
            server.terminate()  # ends the kernels too
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


@pytest.fixture
def page(browser, address):
    """A window of its own, logged in, on the welcome page."""
    context = browser.new_context(viewport={"width": 1280, "height": 960}, color_scheme="dark" if DARK else "light")
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{address}/welcome?token=secret")
    yield page
    context.close()


@pytest.fixture(scope="session")
def picture():
    """`picture(page, name)` keeps what the page shows, where somebody wants it."""
    folder = os.environ.get("TRAINFAST_PICTURES")

    def take(page, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}{'-dark' if DARK else ''}.png", full_page=True)
    return take
