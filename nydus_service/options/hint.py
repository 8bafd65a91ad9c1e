"""Advice in errors that names an option, in the words of the surface that shows the error. Pure."""

from dataclasses import dataclass

from nydus_service.errors import Surface
from nydus_service.oci.annotations import CONVERT_OPTIONS
from nydus_service.options.convert import find_row
from nydus_service.options.option import Flag


@dataclass(frozen=True, slots=True)
class OptionHint:
    """Advice about an option of conversions.

    Attributes:
        template: the advice, with "{}" for the option.
        option: its name in `options.convert.TABLE`.
        value: the value to give it; for a flag, nothing.
    """

    template: str
    option: str
    value: str = ""

    def text(self, surface: Surface) -> str:
        row = find_row(self.option)
        value = "true" if isinstance(row.option.kind, Flag) else self.value
        match surface:
            case Surface.COMMAND_LINE:
                said = f"--{row.flag} {self.value}".rstrip()
            case Surface.LABEL:
                said = f"{CONVERT_OPTIONS}={row.flag}={value}"
            case Surface.REQUEST | Surface.HTTP:
                said = f"the option {row.name}={value}"
        return self.template.format(said)


@dataclass(frozen=True, slots=True)
class SettingHint:
    """Advice about a setting that is no option of conversions: of a store, or of the builder.

    Attributes:
        template: the advice, with "{}" for the setting.
        flag: the setting on the command line, as "--address PATH".
        elsewhere: the setting for requests and labels, as "the daemon's setting containerd.address".
    """

    template: str
    flag: str
    elsewhere: str

    def text(self, surface: Surface) -> str:
        return self.template.format(self.flag if surface is Surface.COMMAND_LINE else self.elsewhere)


@dataclass(frozen=True, slots=True)
class ExistingHint:
    """Names of existing images or namespaces, which may be meant. Clients of HTTP do not get them.

    Attributes:
        names: a clause that has the names.
        setting: advice that follows; None without any.
    """

    names: str
    setting: SettingHint | None = None

    def text(self, surface: Surface) -> str:
        if surface is Surface.HTTP:
            return ""
        return f"{self.names}: {self.setting.text(surface)}" if self.setting else self.names
