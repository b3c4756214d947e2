# Completion of PROGRAM for bash. The tables are those that PROGRAM reads its command line by.
TABLES

_PROGRAM() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' at each
	# bash takes --flag=VALUE for three words.
	[ "$before" != = ] || before=${COMP_WORDS[COMP_CWORD - 2]}
	[ "$word" != = ] || word=
	COMPREPLY=()
	for ((at = 1; at < COMP_CWORD; at++)); do
		each=${COMP_WORDS[at]}
		if [ "$each" = -- ]; then
			[ "$COMP_CWORD" -gt $((at + 1)) ] && at=-f || at=-c
			compopt -o filenames
			mapfile -t COMPREPLY < <(compgen "$at" -- "$word")
			return
		fi
		each=${command:+$command }$each
		[ -z "${_PROGRAM_flags[$each]+known}${_PROGRAM_commands[$each]+known}" ] || command=$each
	done
	if [ -n "${_PROGRAM_values[$before]+known}" ]; then
		_PROGRAM_offer "${_PROGRAM_values[$before]}"
	elif [[ $word == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "${_PROGRAM_flags[${command:-.}]}" -- "$word")
	else
		_PROGRAM_offer "${_PROGRAM_commands[${command:-.}]}"
	fi
}

# _PROGRAM_offer FILE|ID|WORDS
_PROGRAM_offer() {
	case $1 in
	FILE)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		;;
	ID) mapfile -t COMPREPLY < <(compgen -W "$(timeout 2 PROGRAM list --quiet 2>/dev/null)" -- "$word") ;;
	*) mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word") ;;
	esac
}
complete -F _PROGRAM PROGRAM
