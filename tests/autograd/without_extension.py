"""A plugin of pytest, ``-p tests.autograd.without_extension``: fastreg is imported as if no extension were built."""

import sys

sys.modules["fastreg._C"] = None  # pyright: ignore[reportArgumentType]  what import takes for a module not to be found
