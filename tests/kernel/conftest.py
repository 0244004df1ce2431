from tests.scenario import world

__all__ = ["world"]
