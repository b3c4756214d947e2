# Makes of syscalls.table, on two ways through this script, the programs that filter.c loads:
#
#   awk -v step=names: lines "NUMBER|NAME|VERDICT|VERDICT", and what has the C preprocessor put in the numbers
#   awk -v step=tree:  of those, programs as C has them: a binary search over ranges of numbers, so that a call costs
#                      as many comparisons as the number of ranges has bits

function fail(text) {
	print "syscalls.table: " text > "/dev/stderr"
	failed = 1
	exit 1
}

# Both verdicts, of jobs without and with user namespaces.
function verdicts_of(word, both) {
	if (split(word, both, "/") == 1)
		both[2] = both[1]
}

step == "names" && !/^#/ && NF > 0 {
	sub(/ : .*/, "")
	verdicts_of($1, both)
	for (i = 2; i <= NF; i++) {
		split($i "=", call, "=")
		if (call[1] in seen)
			fail(call[1] " is named twice")
		seen[call[1]] = 1
		rest = sprintf(" | \"%s\" | \"%s\" | \"%s\"", call[1], both[1], both[2])
		printf "#ifdef __NR_%s\n__NR_%s%s\n", call[1], call[1], rest
		if (call[2] != "")
			printf "#else\n%s%s\n", call[2], rest
		print "#endif"
	}
}

step == "tree" && / \| / {
	gsub(/"/, "")
	if (!($1 ~ /^[0-9]+$/))
		fail($3 " has no number but " $1)
	if ($1 in call_of)
		fail($3 " and " call_of[$1] " are both " $1)
	call_of[$1] = $3
	verdict[1, $1] = $5
	verdict[2, $1] = $7
	if ($1 + 0 > last)
		last = $1 + 0
}

# The lines of one verdict, which end in a return; their number in `length_of`.
function leaf(word,   values, count, i, lines, argument) {
	if (word == "allow" || word == "deny" || word == "absent") {
		length_of = 1
		return "\t" toupper(word) ",\n"
	}
	if (!match(word, /^arg[0-5](=|!=|!&)/))
		fail("there is no verdict " word)
	argument = substr(word, 4, 1)
	count = split(substr(word, RLENGTH + 1), values, ",")
	lines = "\tLOAD(args[" argument "]),\n"
	for (i = 1; i <= count; i++)
		lines = lines sprintf("\tIF(%s, %s, %d, 0),\n", word ~ /&/ ? "BPF_JSET" : "BPF_JEQ", values[i], count - i + 1)
	length_of = count + 3
	return lines (word ~ /!/ ? "\tALLOW,\n\tDENY,\n" : "\tDENY,\n\tALLOW,\n")
}

# The program for the ranges from `low` to `high`; its length in `size`.
function tree(low, high,   middle, left, left_size, right) {
	if (low == high) {
		left = "\t/* " from[low] (to[low] > from[low] ? " to " to[low] : "") ": " names[low] " */\n" leaf(what[low])
		size = length_of
		return left
	}
	middle = int((low + high + 1) / 2)
	left = tree(low, middle - 1)
	left_size = size
	right = tree(middle, high)
	size += left_size + 1
	if (left_size > 255)
		fail("a jump over " left_size " lines is more than 255")
	return sprintf("\tIF(BPF_JGE, %d, %d, 0),\n", from[middle], left_size) left right
}

function program(which,   count, number, word) {
	count = 0
	for (number = 0; number <= last + 1; number++) {
		word = number in call_of ? verdict[which, number] : "absent"
		if (count == 0 || word != what[count] || word ~ /^arg/) {
			count++
			from[count] = number
			what[count] = word
			names[count] = number in call_of ? call_of[number] : "no call"
		}
		to[count] = number
	}
	return tree(1, count)
}

END {
	if (failed)
		exit 1
	if (step == "tree" && last == 0)
		fail("the headers have no numbers")
	if (step == "tree")
		for (which = 1; which <= 2; which++)
			printf "static const struct sock_filter %s[] = {\n\tPROLOGUE,\n%s};\n",
				which == 1 ? "strict" : "with_namespaces", program(which)
}
