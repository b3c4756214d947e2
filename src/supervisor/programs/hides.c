/*
 * hides KIND MANNER: forks a child that takes no SIGTERM for an answer and does not look as if it ran. KIND `name`: a line
 * feed is in its name. KIND `thread`: its first thread has ended, so that /proc shows a zombie. The child says `ready` and
 * its pid. MANNER `ends`: the child has a session of its own, and its parent ends then, with 5. MANNER `waits`: its parent
 * ends after it, with 6.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int told[2];

static void *stay(void *as_thread)
{
	char text[512] = "";
	while (as_thread && !strstr(text, ") Z ")) {
		FILE *file = fopen("/proc/self/stat", "r");
		if (!file || !fgets(text, sizeof text, file))
			_exit(1);
		fclose(file);
	}
	if (dprintf(STDOUT_FILENO, "ready %d\n", (int)getpid()) < 0 || write(told[1], "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;
	if (argc != 3 || pipe(told) < 0)
		return 1;
	signal(SIGTERM, SIG_IGN);
	pid_t child = fork();
	if (child == 0) {
		if (strcmp(argv[2], "ends") == 0)
			setsid();
		if (strcmp(argv[1], "thread") != 0)
			return prctl(PR_SET_NAME, "x\ny) Z 1 1") == 0 && stay(NULL) ? 0 : 1;
		if (pthread_create(&thread, NULL, stay, &thread) != 0)
			return 1;
		pthread_exit(NULL);
	}
	if (child < 0 || read(told[0], &byte, 1) != 1)
		return 1;
	if (strcmp(argv[2], "ends") == 0)
		return 5;
	return waitpid(child, NULL, 0) == child ? 6 : 1;
}
