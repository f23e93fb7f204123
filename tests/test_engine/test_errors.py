import pytest
import torch.distributed as dist

from mmvmamba.engine import errors


def stop():
    raise SystemExit(0)


@pytest.mark.parametrize('work', [lambda: None, stop])
def test_a_tool_that_ends_leaves_no_process_group(work):
    """Threads of gloo abort a process that exits with them, now and then."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(SystemExit) as end:
            errors.run(work)
        assert end.value.code == 0
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
