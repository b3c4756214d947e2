/*
 * A job's processes: all of the pid namespace whose init its supervisor is, or all of its cgroup, or,
 * where it has neither, all that descend from its supervisor.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void visit(pid_t pid, void *context);

static FILE *open_text(int directory, const char *name)
{
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	if (!file && fd >= 0)
		close(fd);
	return file;
}

static void each_in_file(int directory, const char *name, visit *visit, void *context)
{
	FILE *file = open_text(directory, name);
	int pid;
	if (!file)
		return;
	while (fscanf(file, "%d", &pid) == 1)
		if (pid > 0)
			visit(pid, context);
	fclose(file);
}

/* A job that may write its cgroup can have made groups below it. */
static void each_in_cgroup(int directory, visit *visit, void *context)
{
	int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *entries = fd < 0 ? NULL : fdopendir(fd);
	each_in_file(directory, "cgroup.procs", visit, context);
	if (!entries) {
		if (fd >= 0)
			close(fd);
		return;
	}
	for (struct dirent *entry; (entry = readdir(entries));) {
		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		int child = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (child >= 0) {
			each_in_cgroup(child, visit, context);
			close(child);
		}
	}
	closedir(entries);
}

struct descent {
	visit *visit;
	void *context;
};

static void each_descendant(pid_t pid, void *context)
{
	const struct descent *descent = context;
	char name[64];
	descent->visit(pid, descent->context);
	snprintf(name, sizeof name, "/proc/%d/task", pid);
	DIR *threads = opendir(name);
	if (!threads)
		return;
	/* A child is listed with the thread that forked it. */
	for (struct dirent *thread; (thread = readdir(threads));) {
		char children[sizeof thread->d_name + sizeof "/children"];
		snprintf(children, sizeof children, "%s/children", thread->d_name);
		if (thread->d_name[0] != '.')
			each_in_file(dirfd(threads), children, each_descendant, context);
	}
	closedir(threads);
}

static void each_in_namespace(visit *visit, void *context)
{
	DIR *entries = opendir("/proc");
	if (!entries)
		return;
	for (struct dirent *entry; (entry = readdir(entries));) {
		pid_t pid = atoi(entry->d_name);
		if (pid > 0 && pid != getpid())
			visit(pid, context);
	}
	closedir(entries);
}

static void each(const struct tree *tree, visit *visit, void *context)
{
	if (tree->whole) {
		each_in_namespace(visit, context);
		return;
	}
	if (tree->cgroup >= 0) {
		each_in_cgroup(tree->cgroup, visit, context);
		return;
	}
	/* The supervisor is a subreaper: an orphan becomes its child, whatever session it is in. */
	char name[64];
	snprintf(name, sizeof name, "/proc/self/task/%d/children", (int)getpid());
	each_in_file(AT_FDCWD, name, each_descendant, &(struct descent){ visit, context });
}

/* The cgroup that /proc says `pid` is in, or "". The kernel lets no group have a newline in its name (cgroup_mkdir()). */
static void cgroup_of(pid_t pid, char *path, size_t size)
{
	char name[64], *line = NULL;
	size_t room = 0;
	snprintf(name, sizeof name, "/proc/%d/cgroup", pid);
	FILE *file = open_text(AT_FDCWD, name);
	path[0] = '\0';
	if (!file)
		return;
	/* Whole lines: what follows the part of a line that fills a buffer is no line of its own. */
	for (ssize_t length; (length = getline(&line, &room, file)) > 0;)
		if (strncmp(line, "0::", 3) == 0 && (size_t)length <= size) {
			line[length - 1] = '\0';
			memcpy(path, line, (size_t)length);
		}
	free(line);
	fclose(file);
}

/* Learns what /proc calls the tree's cgroup. The main process must not have been reaped: its pid is its own till then. */
void tree_identify(struct tree *tree)
{
	if (tree->cgroup >= 0 && !tree->whole)
		cgroup_of(tree->main, tree->path, sizeof tree->path);
}

/* Whether any process of the tree still runs; zombies do not count, but for those that an init has not reaped yet. */
bool tree_populated(const struct tree *tree)
{
	char text[256];
	siginfo_t child;
	/* All others descend from an init, by way of children that live. */
	if (tree->whole)
		return waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) == 0;
	if (tree->cgroup < 0)
		return tree_count(tree) > 0;
	ssize_t n = pread(tree->events, text, sizeof text - 1, 0);
	if (n < 0)
		return false; /* ENODEV: the group is gone */
	text[n] = '\0';
	return strstr(text, "populated 1") != NULL;
}

/*
 * A pidfd is ready to be read when, and only when, no thread of its process runs any more (pidfd_open(2)). /proc/PID/stat
 * tells less: of a process whose first thread has ended it says that it is a zombie, and the name in it may hold anything.
 */
static bool runs(pid_t pid)
{
	struct pollfd process = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	if (process.fd < 0)
		return errno != ESRCH; /* without a descriptor to ask with, it is not taken for dead */
	bool running = poll(&process, 1, 0) == 0;
	close(process.fd);
	return running;
}

static void count_one(pid_t pid, void *context)
{
	*(unsigned *)context += runs(pid);
}

unsigned tree_count(const struct tree *tree)
{
	unsigned count = 0;
	each(tree, count_one, &count);
	return count;
}

struct signalling {
	const struct tree *tree;
	int signal;
};

/* A pid that was read a moment ago may be another process's by now: hold the
 * process first, then ask whether it is the job's. */
static void signal_one(pid_t pid, void *context)
{
	const struct signalling *signalling = context;
	const struct tree *tree = signalling->tree;
	char path[sizeof tree->path];
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return;
	size_t length = strlen(tree->path);
	cgroup_of(pid, path, sizeof path);
	if (tree->cgroup < 0 || (strncmp(path, tree->path, length) == 0 && (path[length] == '\0' || path[length] == '/')))
		syscall(SYS_pidfd_send_signal, pidfd, signalling->signal, NULL, 0);
	close(pidfd);
}

void tree_signal(const struct tree *tree, int signal)
{
	if (tree->whole) {
		kill(-1, signal); /* all of the namespace but its init (kill(2)) */
		return;
	}
	each(tree, signal_one, &(struct signalling){ tree, signal });
}

/*
 * One write kills a cgroup, forks in flight too (cgroup-v2.rst, cgroup.kill), but for processes whose first thread has
 * ended: the kernel aims at that thread alone (__cgroup_kill()). A signal to each process reaches those. What they forked
 * meanwhile is there when this is called again. An init reaches all others at once.
 */
void tree_kill(const struct tree *tree)
{
	int fd = tree->cgroup < 0 ? -1 : openat(tree->cgroup, "cgroup.kill", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "1", 1) < 0)
		errno = 0; /* the group is gone, or the signals must do */
	close_if_open(fd);
	tree_signal(tree, SIGKILL);
}
