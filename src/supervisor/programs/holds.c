/* holds PID: keeps a process from running, as a debugger does; says `held`, and lets it go when it ends itself. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	pid_t pid = argc == 2 ? atoi(argv[1]) : 0;
	if (pid <= 0 || ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0 || ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0 ||
	    waitpid(pid, NULL, __WALL) != pid || puts("held") < 0 || fflush(stdout) != 0)
		return 1;
	for (;;)
		pause();
}
