"""NV-Embed v2 in plain PyTorch: text in, unit vectors out.

>>> from nvembed import Encoder
>>> model = Encoder.from_pretrained("nvidia/NV-Embed-v2", device="cuda", dtype="bfloat16")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ChatModel", "Encoder", "Index", "NvembedError", "__version__"]

if TYPE_CHECKING:
    from nvembed.encoder import Encoder as Encoder
    from nvembed.errors import NvembedError as NvembedError
    from nvembed.indexing.index import Index as Index
    from nvembed.search.chat import ChatModel as ChatModel

_HOME = {
    "ChatModel": "nvembed.search.chat",
    "Encoder": "nvembed.encoder",
    "Index": "nvembed.indexing.index",
    "NvembedError": "nvembed.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import nvembed`` stays fast."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'nvembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
