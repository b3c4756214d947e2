/*
 * The floor of a start: make a cgroup, fork a supervisor, clone3 a job into the
 * group, exec /bin/true; until exec has happened. Prints, for `count` starts one
 * after the other, each one's microseconds; with `flight` > 1, that many at once,
 * the starts per second, end and removal of the group included.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* The group of a start; "" without cgroups. */
static const char *group_of(const char *parent, int number)
{
	static char path[4096];
	if (*parent)
		snprintf(path, sizeof path, "%s/floor-%d", parent, number);
	return path;
}

/* Becomes the supervisor of one job: tells by `report` when it has been exec'ed, ends when it has ended. */
static void supervise(const char *group, int report)
{
	char *argv[] = { "/bin/true", NULL }, byte = 0;
	struct clone_args args = { .exit_signal = SIGCHLD };
	int failure[2];
	need(pipe2(failure, O_CLOEXEC) == 0, "pipe");
	if (*group) {
		int fd = open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		need(fd >= 0, group);
		args.flags = CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)fd;
	}
	long pid = syscall(SYS_clone3, &args, sizeof args);
	need(pid >= 0, "clone3");
	if (pid == 0) {
		execv(argv[0], argv);
		need(write(failure[1], &byte, 1) == 1, "failure");
		_exit(127);
	}
	close(failure[1]);
	need(read(failure[0], &byte, 1) == 0, "exec");
	need(write(report, &byte, 1) == 1, "report");
	need(waitpid((pid_t)pid, NULL, 0) == pid, "wait");
	_exit(0);
}

static pid_t start(const char *group, int report)
{
	if (*group)
		need(mkdir(group, 0755) == 0, group);
	pid_t pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		supervise(group, report);
	return pid;
}

int main(int argc, char **argv)
{
	need(argc == 4, "usage: floor CGROUP|'' COUNT FLIGHT");
	int count = atoi(argv[2]), flight = atoi(argv[3]), report[2], started = 0, ended = 0;
	pid_t *pids = calloc((size_t)count, sizeof *pids);
	double begin = now_us();
	char byte;
	need(pids && pipe(report) == 0, "memory");
	while (ended < count) {
		if (started < count && started - ended < flight) {
			double at = now_us();
			pids[started] = start(group_of(argv[1], started), report[1]);
			started++;
			if (flight > 1)
				continue;
			need(read(report[0], &byte, 1) == 1, "report");
			printf("%.1f\n", now_us() - at);
			fflush(stdout);
		}
		int status;
		pid_t pid = wait(&status);
		need(pid > 0 && status == 0, "wait");
		ended++;
		if (flight > 1)
			need(read(report[0], &byte, 1) == 1, "report");
		for (int i = 0; i < started; i++)
			if (pids[i] == pid && *argv[1])
				need(rmdir(group_of(argv[1], i)) == 0, "rmdir");
	}
	if (flight > 1)
		printf("%.1f\n", count / (now_us() - begin) * 1e6);
	return 0;
}
