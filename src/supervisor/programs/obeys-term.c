/* obeys-term CODE: says `ready`, then waits for SIGTERM, says `obeyed` and exits with CODE. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static int code;

static void obey(int signal)
{
	(void)signal;
	_exit(write(STDOUT_FILENO, "obeyed\n", 7) == 7 ? code : EXIT_FAILURE);
}

int main(int argc, char **argv)
{
	code = argc == 2 ? atoi(argv[1]) : 0;
	signal(SIGTERM, obey);
	if (write(STDOUT_FILENO, "ready\n", 6) != 6)
		return EXIT_FAILURE;
	for (;;)
		pause();
}
