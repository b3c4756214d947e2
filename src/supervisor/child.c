/*
 * From clone3 to exec: the job gives up all that is the daemon's.
 *
 * The job is cloned as posix_spawn(3) does it: it borrows the supervisor's memory
 * (CLONE_VM) on a stack of its own, and the supervisor sleeps until the job has
 * exec'ed or ended (CLONE_VFORK). No page table is copied, no page is faulted in
 * twice, and a failure is told by writing it down.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BIRTH_STACK = 32 << 10 };
enum { OPEN_FILES = 1024 }; /* what programs that use select() can bear; they may raise it to the hard limit */

struct birth {
	const struct request *request;
	pid_t supervisor;
	int out, err;
	enum stage reached; /* by which the job's own paths are resolved */
	struct born born;
	struct failure failure;
};

static bool take_stdio(int out, int err)
{
	return dup2(out, STDOUT_FILENO) >= 0 && dup2(err, STDERR_FILENO) >= 0;
}

/*
 * Closes every descriptor but 0, 1 and 2. The kernel resolves the paths that a job names after this: /proc/self/fd/N leads
 * to whatever is open, close-on-exec or not. The supervisor keeps its own descriptors, since the clone copied the table.
 */
static bool close_others(void)
{
	return syscall(SYS_close_range, STDERR_FILENO + 1U, ~0U, 0) == 0;
}

static bool unblock_signals(void)
{
	sigset_t none;
	return sigemptyset(&none) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0;
}

/* The daemon may be shielded from the out-of-memory killer; its jobs are not. */
static bool set_oom_score(int score)
{
	char text[16];
	int length = snprintf(text, sizeof text, "%d", score);
	int fd = open_own("/proc/self/oom_score_adj");
	/* To lower it below what root once set it to takes CAP_SYS_RESOURCE; without, the job stays the more likely victim. */
	bool done = fd >= 0 && (write(fd, text, (size_t)length) == length || (errno == EACCES && oom_score > score));
	close_if_open(fd);
	return done;
}

/*
 * Has the kernel end this process at the job's time limit: a path that is the job's may lead to a file system that never
 * answers, or to a file with a lease on it. An execve deletes the timer (timer_create(2)).
 */
static bool limit_birth(int64_t limit_ms)
{
	struct sigevent end = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
	struct itimerspec after = { .it_value = { limit_ms / 1000, limit_ms % 1000 * 1000000 } };
	int timer;
	return limit_ms <= 0 || (syscall(SYS_timer_create, CLOCK_MONOTONIC, &end, &timer) == 0 &&
				 syscall(SYS_timer_settime, timer, 0, &after, NULL) == 0);
}

static bool set_limits(const struct request *request)
{
	struct rlimit files;
	const struct start *start = &request->start;
	/* This opens a file, for which the limits that follow may leave no room. */
	if (oom_score != start->oom_score && !set_oom_score(start->oom_score))
		return false;
	if (!limit_birth(start->time_limit_ms) || getrlimit(RLIMIT_NOFILE, &files) < 0)
		return false;
	files.rlim_cur = files.rlim_max < OPEN_FILES ? files.rlim_max : OPEN_FILES;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		return false;
	for (uint32_t i = 0; i < start->limit_count; i++) {
		struct limit limit;
		memcpy(&limit, &request->limits[i], sizeof limit);
		if (setrlimit(limit.resource, &(struct rlimit){ limit.soft, limit.hard }) < 0)
			return false;
	}
	umask(start->umask);
	return true;
}

/*
 * Takes on a uid that nothing else runs under, or fails with EBUSY. The kernel counts a uid's processes for RLIMIT_NPROC,
 * in whichever pid namespace they are, and with this one among them nobody else can find the uid free. It tells by
 * refusing an execve(2) with EAGAIN when there are more than the limit after the uid was changed; a directory, which is
 * no program, it refuses with EACCES.
 */
static bool become_alone(uid_t uid)
{
	struct rlimit own, least = { 0 };
	char *none[] = { NULL };
	if (getrlimit(RLIMIT_NPROC, &own) < 0)
		return false;
	least.rlim_max = own.rlim_max;
	if (setrlimit(RLIMIT_NPROC, &least) < 0 || setresuid(uid, uid, uid) < 0)
		return false;
	least.rlim_cur = own.rlim_max > 0;
	if (setrlimit(RLIMIT_NPROC, &least) < 0)
		return false;
	execve("/", none, none);
	bool alone = errno != EAGAIN;
	if (setrlimit(RLIMIT_NPROC, &own) < 0)
		return false;
	errno = EBUSY;
	return alone;
}

static bool become(const struct request *request)
{
	const struct start *start = &request->start;
	if (start->set_user == AS_IT_IS)
		return true;
	return setgroups(start->group_count, request->groups) == 0 &&
	       setresgid(start->gid, start->gid, start->gid) == 0 &&
	       (start->set_user == SET_USER_ALONE ? become_alone(start->uid) :
						    setresuid(start->uid, start->uid, start->uid) == 0);
}

static bool drop_privileges(const struct request *request, pid_t supervisor)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };
	if (!become(request))
		return false;
	/* Nobody would record the end of a job whose supervisor is gone. Changing user clears this, so it comes after. */
	if ((isolation.parts & PART_NO_CAPABILITIES && syscall(SYS_capset, &header, none) < 0) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return false;
	errno = ESRCH;
	return getppid() == supervisor;
}

static const char *search_path(char **envp)
{
	for (; *envp; envp++)
		if (strncmp(*envp, "PATH=", 5) == 0)
			return *envp + 5;
	return "";
}

/* Executes as execvpe(3) does, but takes a file of no known format for an error and not for a shell script. */
static void execute(char **argv, char **envp)
{
	char file[4096];
	bool denied = false;
	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, envp);
		return;
	}
	errno = ENOENT;
	for (const char *place = search_path(envp); *place;) {
		size_t length = strcspn(place, ":"), name = strlen(argv[0]);
		if (length && length + name + 2 <= sizeof file) {
			memcpy(file, place, length);
			file[length] = '/';
			memcpy(file + length + 1, argv[0], name + 1);
			execve(file, argv, envp);
			denied |= errno == EACCES;
			if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
				return;
		}
		place += length + (place[length] == ':');
	}
	if (denied)
		errno = EACCES;
}

static enum stage prepare_and_execute(struct birth *birth)
{
	const struct request *request = birth->request;
	birth->born.outer = outer_self();
	if (setsid() < 0 || !take_stdio(birth->out, birth->err))
		return STAGE_STDIO;
	if (!isolate_job(request))
		return STAGE_ISOLATION;
	if (!set_limits(request))
		return STAGE_LIMITS;
	/* Before it is the user's: until its exec the process has the supervisor's memory, and these lead to the host. */
	if (!close_others())
		return STAGE_STDIO;
	/* Here, since without no_new_privs it takes the capabilities that are given up next. */
	if ((is_own(&request->start) && !keep_off(birth->supervisor)) ||
	    (isolation.parts & PART_SECCOMP && !filter_calls(request->start.user_namespaces)))
		return STAGE_ISOLATION;
	if (!drop_privileges(request, birth->supervisor))
		return STAGE_USER;
	if (!unblock_signals())
		return STAGE_STDIO;
	/* From here on the job's own paths are resolved. */
	birth->reached = STAGE_CWD;
	if (chdir(request->cwd) < 0)
		return STAGE_CWD;
	/* The supervisor goes on when the job has been executed, and by then a short job may have ended. */
	birth->born.started_ns = now_ns(CLOCK_REALTIME);
	birth->born.started_clock_ns = now_ns(CLOCK_MONOTONIC);
	birth->reached = STAGE_EXEC;
	execute(request->argv, request->envp);
	return STAGE_EXEC;
}

static _Noreturn void be_born(struct birth *birth)
{
	enum stage stage = prepare_and_execute(birth);
	birth->failure = (struct failure){ (int32_t)stage, errno };
	_exit(127);
}

/* The form of a function that clone(2) takes. */
static int be_born_of_clone(void *birth)
{
	be_born(birth);
}

/* clone3 with a function to run on the new stack, which no libc has yet. Returns a pid or -errno. */
static long clone3_call(struct clone_args *args, struct birth *birth)
{
	long result;
#if defined(__x86_64__)
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "mov %[birth], %%rdi\n\t"
			 "call *%[function]\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(result)
			 : "a"(SYS_clone3), "D"(args), "S"(sizeof *args), [birth] "r"(birth), [function] "r"(be_born)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3;
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof *args;
	__asm__ volatile("svc #0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x0, %[birth]\n\t"
			 "blr %[function]\n\t"
			 "brk #0\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), [birth] "r"(birth), [function] "r"(be_born)
			 : "x30", "cc", "memory");
	result = x0;
#else
#error "clone3_call is written for x86-64 and aarch64"
#endif
	return result;
}

/*
 * Tells whether a child was killed before its program was executed: the kernel keeps a mark until then (PF_FORKNOEXEC in
 * the flags of proc_pid_stat(5)). vfork returns within the exec, before the mark goes, and within the exit, before there
 * is a zombie: only a child that exits (PF_EXITING) and has the mark was killed. Costs 3 us.
 */
static bool died_unborn(pid_t pid)
{
	enum { EXITING = 0x4, FORKNOEXEC = 0x40 };
	char path[32], text[512] = "";
	unsigned flags = 0;
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool done = fd >= 0 && read(fd, text, sizeof text - 1) > 0;
	close_if_open(fd);
	const char *name_end = strrchr(text, ')');
	return done && name_end && sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && flags & EXITING &&
	       flags & FORKNOEXEC;
}

/*
 * Clones a process into the cgroup (a directory's descriptor, or -1), so that its
 * limits hold from its first instruction, and has it execute the request's program.
 * Returns 0, or the stage that failed, with errno.
 */
enum stage give_birth(const struct request *request, int cgroup, int out, int err, struct born *born)
{
	static char stack[BIRTH_STACK] __attribute__((aligned(64)));
	struct birth birth = { .request = request, .supervisor = getpid(), .out = out, .err = err };
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | (cgroup < 0 ? 0 : CLONE_INTO_CGROUP),
		.cgroup = cgroup < 0 ? 0 : (uint64_t)cgroup,
		.exit_signal = SIGCHLD,
		.stack = (uint64_t)(uintptr_t)stack,
		.stack_size = sizeof stack,
	};
	int64_t began_ns = now_ns(CLOCK_MONOTONIC);
	long pid = clone3_call(&args, &birth);
	/* Container engines' seccomp profiles deny clone3, whose flags they cannot see; only a cgroup needs it. */
	if (pid == -ENOSYS && cgroup < 0) {
		pid = clone(be_born_of_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &birth);
		if (pid < 0)
			pid = -errno;
	}
	if (pid < 0) {
		errno = (int)-pid;
		return pid == -EAGAIN || pid == -ENOMEM || cgroup < 0 ? STAGE_CLONE : STAGE_CGROUP;
	}
	*born = birth.born;
	born->inner = (pid_t)pid;
	if (!birth.failure.stage && died_unborn((pid_t)pid)) {
		int64_t limit_ms = request->start.time_limit_ms;
		bool late = limit_ms > 0 && (now_ns(CLOCK_MONOTONIC) - began_ns) / 1000000 >= limit_ms;
		birth.failure = (struct failure){ (int32_t)birth.reached, late ? ETIMEDOUT : ECANCELED };
	}
	if (birth.failure.stage) {
		waitpid((pid_t)pid, NULL, 0);
		errno = birth.failure.error;
	}
	return (enum stage)birth.failure.stage;
}
