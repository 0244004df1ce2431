# cffi's objects are opaque to the type checker: C functions take and return C data.
from typing import Any

ffi: Any
lib: Any
