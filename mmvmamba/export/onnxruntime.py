"""Our CPU kernels in ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch

from mmvmamba.ops.extension import extension_error, library_path


def register_custom_ops(options: Any) -> None:
    """Register ``mmvmamba::SS2DScan`` in the options of a session.

    The native extension contains the op. Only files exported with
    :func:`mmvmamba.export.onnx.translations` and ``custom_op=True`` need it.

    Args:
        options (onnxruntime.SessionOptions): The options, changed in place.

    Raises:
        RuntimeError: If the native extension is not loaded.
    """
    reason = extension_error()
    if reason is not None:
        raise RuntimeError(f'the custom op needs the native extension: {reason}')
    options.register_custom_ops_library(str(library_path('_C')))


def open_session(path: str | Path, custom_op: bool = False) -> Any:
    """Open a file on the CPU, with as many threads as PyTorch, to compare it with PyTorch.

    Args:
        path (str | Path): The ONNX file.
        custom_op (bool): Register ``mmvmamba::SS2DScan``. Defaults to False.

    Returns:
        onnxruntime.InferenceSession: The session.

    Raises:
        RuntimeError: If the custom op is requested and the native extension is not loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop would slow what runs next.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    if custom_op:
        register_custom_ops(options)
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
