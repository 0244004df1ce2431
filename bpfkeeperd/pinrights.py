"""Who owns a pin and who may open it: as it is, and as a manifest wants it. Pure."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rights:
    """Owner, group and mode of a pin that is there."""

    uid: int
    gid: int
    mode: int
    """The permissions alone."""
    owner: str = field(default="", compare=False)
    """The user's name, where it is known."""
    group: str = field(default="", compare=False)

    @property
    def who(self) -> str:
        return f"{self.owner or self.uid}:{self.group or self.gid}"


@dataclass(frozen=True, slots=True)
class WantedRights:
    """What a manifest says of a pin's rights: nothing (None) of what is to stay as it is."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    owner: str = field(default="", compare=False)
    """As it is written."""
    group: str = field(default="", compare=False)

    def __bool__(self) -> bool:
        return (self.uid, self.gid, self.mode) != (None, None, None)

    def over(self, found: Rights) -> Rights:
        """The rights that a pin gets which has those found."""
        same_user = self.uid in (None, found.uid)
        same_group = self.gid in (None, found.gid)
        return Rights(
            uid=found.uid if self.uid is None else self.uid,
            gid=found.gid if self.gid is None else self.gid,
            mode=found.mode if self.mode is None else self.mode,
            owner=self.owner or (found.owner if same_user else ""),
            group=self.group or (found.group if same_group else ""),
        )


NO_RIGHTS = WantedRights()
"""What is there stays."""
