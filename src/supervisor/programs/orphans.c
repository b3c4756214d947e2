/* Leaves its supervisor children that have ended, without end, from as many processes as it is told. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BROOD = 50 };

int main(int argc, char **argv)
{
	for (int i = 0; argc > 1 && i < atoi(argv[1]); i++)
		if (fork() == 0)
			for (pid_t parent;;) {
				if ((parent = fork()) == 0) {
					for (int child = 0; child < BROOD; child++)
						if (vfork() == 0)
							_exit(0);
					_exit(0);
				}
				waitpid(parent, NULL, 0);
			}
	for (;;)
		pause();
}
