"""The kernels' sources for ROCm: PyTorch's translation, and what it cannot translate."""

import re
from pathlib import Path

import pytest
from torch.utils.hipify import hipify_python

CSRC = Path(__file__).resolve().parents[1] / 'csrc'
SOURCES = sorted(p for p in CSRC.rglob('*') if p.suffix in ('.cu', '.cuh', '.h', '.cpp'))


def test_hipify_runs_clean(tmp_path):
    result = hipify_python.hipify(
        project_directory=str(CSRC),
        output_directory=str(tmp_path / 'csrc'),
        includes=['*'],
        header_include_dirs=[],
        extensions=('.cu', '.cuh', '.h', '.cpp'),
        show_detailed=False,
        is_pytorch_extension=True,
    )
    kernels = {p for p in result if p.endswith(('.cu', '.cuh'))}
    assert len(kernels) == len(list((CSRC / 'cuda').glob('*.cu*')))
    for path, outcome in result.items():
        assert outcome.status == '[ok]' or outcome.status.startswith(('[skipped', '[ignored'))
        text = Path(outcome.hipified_path or path).read_text()
        # Nothing of CUDA's runtime is left in what a ROCm build compiles. PyTorch's own names, such
        # as `aoti_torch_get_current_cuda_stream`, are the same on ROCm.
        left = re.findall(r'\bcuda(?:Error|Stream|Func|Get|Device|Dev|Success)\w*', text)
        if path.endswith(('.cu', '.cuh')) or 'cuda/scan_device.cpp' in path:
            assert not left, (path, left)


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_one_header_knows_the_instructions_of_a_gpu(path):
    """No instruction inside of a warp and no inline PTX elsewhere: they differ between GPUs."""
    text = re.sub(r'//.*', '', path.read_text(encoding='utf-8'))
    for word in ('__shfl', '__ballot', '__syncwarp', 'warpSize', 'asm volatile', 'asm('):
        assert word not in text or path.name == 'ptx.h', f'{word} in {path.name}'


def test_inline_ptx_is_for_nvidia_alone():
    text = (CSRC / 'cuda' / 'ptx.h').read_text(encoding='utf-8')
    depth, guarded = [], []
    for line in text.splitlines():
        if line.startswith('#if'):
            depth.append('MMVMAMBA_PTX' in line)
        elif line.startswith('#else'):
            depth[-1] = False
        elif line.startswith('#endif'):
            depth.pop()
        elif 'asm' in line.partition('//')[0]:
            guarded.append(any(depth))
    assert guarded and all(guarded)
