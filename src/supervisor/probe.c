/*
 * `supervisor probe [STATE]`: tries what a job's start takes of the kernel, each in a process of its own, and prints
 * a line for each: "NAME ok" or "NAME errno N". Nothing of it stays: namespaces end with their process, the program
 * and the file are never given a name. A jobs' directory, which the spawner is started with, is an absolute path.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/falloc.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 4096 };

/* The kernel refuses a fresh one where parts of the old one are masked, as a container's are. */
static bool mount_proc(void)
{
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
}

/* 0, or the errno of a child in these namespaces, without root in a user namespace of its own, too. */
static int try_namespaces(unsigned long flags, bool (*within)(void))
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int status;
	if (uid != 0)
		flags |= CLONE_NEWUSER;
	/* clone and not clone3, which a seccomp profile may deny alone: give_birth falls back likewise. */
	pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		_exit((flags & CLONE_NEWUSER && !map_user(uid, gid)) || (within && !within()) ? errno : 0);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/* A descriptor that is no cgroup's is told as such (EBADF) where the call and the flag are there. */
static int try_clone_into_cgroup(void)
{
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .cgroup = (uint64_t)root, .exit_signal = SIGCHLD };
	long pid = root < 0 ? -1 : syscall(SYS_clone3, &args, sizeof args);
	if (pid == 0)
		_exit(EXIT_SUCCESS);
	close_if_open(root);
	if (pid > 0)
		return waitpid((pid_t)pid, NULL, 0) < 0 ? errno : 0;
	return errno == EBADF ? 0 : errno;
}

/* A program that allows every device, loaded and let go. */
static int try_device_program(void)
{
	struct bpf_insn allow[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	int program = devices_load(allow, sizeof allow);
	return program < 0 || close(program) < 0 ? errno : 0;
}

/* The kernel tells a slice of its ordinary processes since it lets them ask for one (Linux 6.12). */
static int try_slice(void)
{
	struct sched_attr attr = { .size = sizeof attr };
	if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) < 0)
		return errno;
	return attr.sched_runtime ? 0 : ENOTSUP;
}

/* Not every file system makes files without a name. */
static int open_nameless(const char *directory)
{
	char path[4096];
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0 || errno != EOPNOTSUPP ||
	    snprintf(path, sizeof path, "%s/.probe-XXXXXX", directory) >= (int)sizeof path)
		return fd;
	fd = mkstemp(path);
	return fd >= 0 && unlink(path) < 0 ? -1 : fd;
}

/* Punches a hole in a file of the state directory, which is how a job's log is bounded. */
static int try_punch_hole(const char *directory)
{
	int fd = open_nameless(directory);
	bool done = fd >= 0 && ftruncate(fd, 2 * BLOCK) == 0 &&
		    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BLOCK) == 0 && close(fd) == 0;
	return done ? 0 : errno;
}

static bool report(const char *name, int error)
{
	return (error ? printf("%s errno %d\n", name, error) : printf("%s ok\n", name)) > 0;
}

int probe(const char *state)
{
	isolation.parts = PART_NO_NEW_PRIVILEGES; /* as a spawner has it, and a filter of system calls takes it */
	bool told = put_back_inherited() && report("user", try_namespaces(CLONE_NEWUSER, NULL)) &&
		    report("pid", try_namespaces(CLONE_NEWPID, NULL)) &&
		    report("mount", try_namespaces(CLONE_NEWNS, NULL)) &&
		    report("ipc", try_namespaces(CLONE_NEWIPC, NULL)) &&
		    report("uts", try_namespaces(CLONE_NEWUTS, NULL)) &&
		    report("cgroup", try_namespaces(CLONE_NEWCGROUP, NULL)) &&
		    report("network", try_namespaces(CLONE_NEWNET, NULL)) &&
		    report("proc", try_namespaces(CLONE_NEWPID | CLONE_NEWNS, mount_proc)) &&
		    report("clone3", try_clone_into_cgroup()) && report("bpf", try_device_program()) &&
		    report("slice", try_slice()) && report("seccomp", try_filter()) && (!state || report("hole", try_punch_hole(state)));
	return told && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
