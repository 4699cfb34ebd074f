"""peft comes without torch's compiler, and what bitsandbytes compiles is compiled when it is called."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
before = torch.compile
from posttrain.models.import_peft import import_peft
assert import_peft() is import_peft() is sys.modules["peft"]
assert torch.compile is before
assert "bitsandbytes" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler was imported"
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
values = torch.linspace(-1, 1, 512)
packed, state = quantize_blockwise(values, blocksize=64)
assert (dequantize_blockwise(packed, state) - values).abs().max() < 0.02
"""


def test_the_compiler_is_not_imported_with_it():
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_function_is_compiled_once_and_at_its_first_call():
    from posttrain.models.import_peft import _at_first_call

    asked = []
    later = _at_first_call(lambda function, **options: asked.append(options) or function)
    double = later(dynamic=True)(lambda x: 2 * x)
    assert asked == []
    assert [double(2), double(x=3)] == [4, 6]
    assert asked == [{"dynamic": True}]
