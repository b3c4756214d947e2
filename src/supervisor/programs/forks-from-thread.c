/* A second thread forks a child, which says `obeyed` and ends at SIGTERM; its parent ignores SIGTERM and ends after it. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void obey(int signal)
{
	(void)signal;
	_exit(write(STDOUT_FILENO, "obeyed\n", 7) == 7 ? EXIT_SUCCESS : EXIT_FAILURE);
}

static void *fork_and_stay(void *unused)
{
	if (fork() == 0) {
		signal(SIGTERM, obey);
		if (write(STDOUT_FILENO, "ready\n", 6) != 6)
			_exit(EXIT_FAILURE);
		for (;;)
			pause();
	}
	wait(NULL);
	return unused;
}

int main(void)
{
	pthread_t thread;
	signal(SIGTERM, SIG_IGN);
	return pthread_create(&thread, NULL, fork_and_stay, NULL) != 0 || pthread_join(thread, NULL) != 0;
}
