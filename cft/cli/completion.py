"""Bash completion of commands, options and keys:   eval "$(cft completion)"

The first word is one of the commands; after a stage Hydra completes its groups, options and keys.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cft.cli.exit_status import EXIT_USER_ERROR
from cft.config.stages import STAGES

SUMMARY = 'completion of commands, options and keys in bash: eval "$(cft completion)"'

# A word ends at = where COMP_WORDBREAKS says so, and then only what follows is replaced.
_BASH = r"""_cft_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" word="" choices words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] || { word="${words[-1]}"; unset 'words[-1]'; }
    if (( ${#words[@]} <= 1 )); then
        choices="{commands}"
        compopt +o nospace 2> /dev/null
    else
        case "${words[1]}" in
            {stages}) ;;
            *) return ;;
        esac
        line="cft ${words[*]:2}"
        choices=$(COMP_LINE="${line% } $word" COMP_POINT=0 "${words[0]}" "${words[1]}" -sc query=bash 2> /dev/null)
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -o nospace -o default -F _cft_completion cft"""


def run(argv: Sequence[str], *, commands: Sequence[str]) -> int:
    """`cft completion`. Returns the exit status."""
    if argv not in ([], ["bash"]):
        print(
            f'cft completion: expected no argument, found {" ".join(argv)}; eval "$(cft completion)"', file=sys.stderr
        )
        return EXIT_USER_ERROR
    print(_BASH.replace("{commands}", " ".join(commands)).replace("{stages}", "|".join((*STAGES, "labels"))))
    return 0
