"""What the labs import. Triton decides at its first import whether it interprets, and parts of torch import it: so first of all."""
from course.device import prepare_triton

prepare_triton()
