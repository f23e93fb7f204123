"""Our CPU kernels in ONNX Runtime."""

from typing import Any

from mmvmamba.ops.extension import extension_error, library_path


def register_custom_ops(options: Any) -> None:
    """Register ``mmvmamba::SS2DScan`` in the options of a session.

    The native extension holds the op. Files that :func:`mmvmamba.export.onnx.translations` wrote
    with ``custom_op=True`` need it; all others run without.

    Args:
        options (onnxruntime.SessionOptions): The options, changed in place.

    Raises:
        RuntimeError: If the native extension is not loaded.
    """
    reason = extension_error()
    if reason is not None:
        raise RuntimeError(f'the custom op is part of the native extension: {reason}')
    options.register_custom_ops_library(str(library_path('_C')))
