/* Holds a lease on a file: whoever opens that waits, 45 s at most (F_SETLEASE, fcntl(2)). Says when it has it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
	if (fd < 0 || signal(SIGIO, SIG_IGN) == SIG_ERR || fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
		return 1;
	puts("held");
	fflush(stdout);
	pause();
	return 0;
}
