/*
 * What keeps a job from the host and from other jobs. Nearly all of it is made ahead, in the
 * supervisor while it waits: it is the init of the job's pid namespace, and shares the job's mount,
 * ipc and uts namespaces. What is the host's it reaches from ROOT_FD, which was opened before.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct isolation isolation;

/* The mount namespace that jobs are kept from. */
static struct {
	int changes, mounts;
} host = { -1, -1 };

/* Returns the calling process's pid as the host numbers it: the pid in a namespace of its own is another. */
pid_t outer_self(void)
{
	char pid[16] = "";
	return readlinkat(ROOT_FD, "proc/self", pid, sizeof pid - 1) > 0 ? atoi(pid) : getpid();
}

/* Forks into a pid namespace, and without root into a user namespace. Returns as fork(2) does. */
pid_t fork_isolated(void)
{
	unsigned long flags = (isolation.parts & PART_PID ? CLONE_NEWPID : 0) |
			      (isolation.parts & PART_USER ? CLONE_NEWUSER : 0);
	return (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0L, 0L, 0L, 0L);
}

/* Opens for writing a file of its own in /proc, which is its user's as long as its memory is (proc(5)). -1 with errno. */
int open_own(const char *path)
{
	int fd = prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0 ? -1 : open(path, O_WRONLY | O_CLOEXEC);
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? -1 : fd;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open_own(path);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close_if_open(fd);
	return done;
}

/* Neither a set-user-id program nor uid 0 gives a job any capability (capabilities(7)). */
bool drop_bounding_set(void)
{
	if (!(isolation.parts & PART_NO_CAPABILITIES))
		return true;
	for (int number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++)
		if (prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0 && errno != EPERM)
			return false;
	return true;
}

/* Everybody keeps the one uid and gid there are (user_namespaces(7)). */
bool map_user(uid_t uid, gid_t gid)
{
	char users[32], groups[32];
	snprintf(users, sizeof users, "%u %u 1", uid, uid);
	snprintf(groups, sizeof groups, "%u %u 1", gid, gid);
	return write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", users) &&
	       write_text("/proc/self/gid_map", groups) && drop_bounding_set();
}

/* A place that the host does not have needs nothing. stat(2) has the capabilities of a user namespace, access(2) has not. */
static bool absent(const char *path)
{
	struct stat file;
	return stat(path, &file) < 0 && (errno == ENOENT || errno == ENOTDIR);
}

static bool mount_over(const char *type, const char *path, unsigned long flags, const char *options)
{
	return mount(type, path, type, MS_NOSUID | MS_NODEV | flags, options) == 0 || absent(path);
}

static bool set_attributes(const char *path, struct mount_attr attr)
{
	return syscall(SYS_mount_setattr, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr) == 0 || absent(path);
}

static bool make_read_only(const char *path)
{
	return set_attributes(path, (struct mount_attr){ .attr_set = MOUNT_ATTR_RDONLY });
}

/* Keeps out mounts that the host makes below from now on: they would be as writable as they are there. */
static bool close_to_mounts(const char *path)
{
	return set_attributes(path, (struct mount_attr){ .propagation = MS_PRIVATE });
}

static bool hide(const char *path)
{
	struct stat file;
	if (stat(path, &file) < 0)
		return errno == ENOENT || errno == ENOTDIR;
	if (S_ISDIR(file.st_mode))
		return mount_over("tmpfs", path, MS_NOEXEC | MS_RDONLY, "mode=0,size=4k");
	return mount("/dev/null", path, NULL, MS_BIND, NULL) == 0;
}

/*
 * Places that everybody may write to, each covered by one in memory that ends with the job: what a job leaves there would
 * outlive it, and be another's when its uid is. /dev/shm is among them where it is not the job's own already.
 */
static const char *const tmp[] = { "/tmp", "/var/tmp", "/run/lock", "/var/crash", "/dev/shm" };
static bool covered[sizeof tmp / sizeof *tmp];

static bool cover_tmp(void)
{
	for (size_t i = 0; i < sizeof tmp / sizeof *tmp - !!(isolation.parts & PART_IPC); i++) {
		covered[i] = mount("tmpfs", tmp[i], "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") == 0;
		if (!covered[i] && !absent(tmp[i]))
			return false;
	}
	return true;
}

static bool uncover_tmp(void)
{
	for (size_t i = sizeof tmp / sizeof *tmp; i-- > 0;)
		if (covered[i] && umount2(tmp[i], MNT_DETACH) < 0)
			return false;
	return true;
}

/* Whether the job has these places of its own. They have been covered ahead where most jobs have. */
bool settle_tmp(bool own)
{
	bool ahead = isolation.parts & OWN_TMP;
	errno = EPERM;
	if (!(isolation.parts & PART_MOUNT))
		return !own;
	return own == ahead || (own ? cover_tmp() : uncover_tmp());
}

static bool is_mounted(const char *path)
{
	struct statx file;
	return statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &file) == 0 && file.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

/* Replaces the escapes of mountinfo, a backslash and three octal digits, in place (proc_pid_mountinfo(5)). */
static void unescape(char *path)
{
	char *to = path;
	for (const char *from = path; *from;) {
		unsigned octal;
		if (*from == '\\' && sscanf(from + 1, "%3o", &octal) == 1) {
			*to++ = (char)octal;
			from += 4;
		} else
			*to++ = *from++;
	}
	*to = '\0';
}

static bool is_below(const char *path, const char *top)
{
	size_t length = strlen(top);
	return strncmp(path, top, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

/* Has a mount of this type show, and set, nothing but what the usual place of its kind does. */
static bool seal_mount(const char *type, const char *path)
{
	static const char *const kernel[] = { "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs",
					      "bpf", "efivarfs", "pstore", "fusectl", "binfmt_misc", "selinuxfs", "smackfs",
					      "resctrl", "nfsd", "rpc_pipefs" };
	if (!is_mounted(path))
		return true; /* another mount is over it */
	if (strcmp(type, "proc") == 0)
		return is_below(path, "/proc") ||
		       (isolation.parts & PART_PID ? hide(path) : make_read_only(path));
	if (strcmp(type, "devpts") == 0)
		return is_below(path, "/dev/pts") || hide(path);
	for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
		if (strcmp(type, kernel[i]) == 0)
			return make_read_only(path);
	return true;
}

/* The kernel's own file systems may be mounted anywhere: a chroot's /proc is as good as the host's. */
static bool seal_kernel(void)
{
	char *line = NULL, *path = NULL, *type = NULL;
	size_t room = 0;
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	bool done = mounts != NULL;
	while (done && getline(&line, &room, mounts) > 0) {
		const char *options = strstr(line, " - ");
		if (sscanf(line, "%*s %*s %*s %*s %ms", &path) == 1 && options && sscanf(options, " - %ms", &type) == 1) {
			unescape(path);
			done = seal_mount(type, path);
		}
		free(path);
		free(type);
		path = type = NULL;
	}
	free(line);
	if (mounts)
		fclose(mounts);
	return done;
}

/* Where the host shares its mounts they come and go in here, too; else it could not unmount what a waiting supervisor
 * has. Terminals are the job's: those of the host may be an administrator's. Anybody may read
 * the kernel's log in /dev/kmsg (syslog(2)). */
static unsigned enter_mounts(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0 || !close_to_mounts("/sys") ||
	    !make_read_only("/sys") || !seal_kernel() || !hide("/dev/kmsg") ||
	    !(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666") == 0 || hide("/dev/pts")))
		return PART_MOUNT;
	if (isolation.parts & PART_IPC && !(mount_over("tmpfs", "/dev/shm", 0, "mode=1777") &&
					    mount_over("mqueue", "/dev/mqueue", MS_NOEXEC, NULL)))
		return PART_IPC;
	if (isolation.parts & OWN_TMP && !cover_tmp())
		return PART_MOUNT;
	return isolation.parts & PART_PID && !mount_over("proc", "/proc", MS_NOEXEC, NULL) ? PART_PID : 0;
}

/* Returns 0, or the part that cannot be had, with errno. `uid` and `gid` are those outside. */
unsigned isolate(uid_t uid, gid_t gid)
{
	if (isolation.parts & PART_USER && !map_user(uid, gid))
		return PART_USER;
	if (isolation.parts & PART_IPC && unshare(CLONE_NEWIPC) < 0)
		return PART_IPC;
	if (isolation.parts & PART_UTS && unshare(CLONE_NEWUTS) < 0)
		return PART_UTS;
	if (!(isolation.parts & PART_MOUNT))
		return 0;
	host.changes = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	host.mounts = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	return host.changes < 0 || host.mounts < 0 ? PART_MOUNT : enter_mounts();
}

/*
 * A host that does not share its mounts may have mounted something since this supervisor made its own: it makes them
 * again. Without root there is no way back. mountinfo tells what changed since it was opened (proc_pid_mountinfo(5)).
 */
bool renew_mounts(void)
{
	struct pollfd changes = { .fd = host.changes, .events = POLLPRI };
	bool done = !(isolation.parts & PART_MOUNT) || isolation.parts & PART_USER || poll(&changes, 1, 0) <= 0 ||
		    /* To enter a mount namespace is to leave the daemon's root, where that is another. */
		    (setns(host.mounts, CLONE_NEWNS) == 0 && fchdir(ROOT_FD) == 0 && chroot(".") == 0 && enter_mounts() == 0);
	close_if_open(host.changes);
	close_if_open(host.mounts);
	return done;
}

/* The job sees no group but its own, read-only like all of /sys. A second mount of cgroup2 over the first is EBUSY. */
static bool enter_cgroup(const char *group)
{
	return unshare(CLONE_NEWCGROUP) == 0 && mount(group, isolation.cgroups, NULL, MS_BIND, NULL) == 0;
}

static bool enter_network(void)
{
	struct ifreq loopback = { .ifr_name = "lo" };
	if (unshare(CLONE_NEWNET) < 0)
		return false;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	loopback.ifr_flags = IFF_UP;
	bool done = fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &loopback) == 0;
	close_if_open(fd);
	return done;
}

static bool seal(const char *path)
{
	return absent(path) || (mount(path, path, NULL, MS_BIND | MS_REC, NULL) == 0 && make_read_only(path));
}

/* What is mounted on a name moves with the directories above it, and another could be put in their place; unless they
 * are mount points, too (rename(2), EBUSY). */
static bool fix_above(const char *path)
{
	char above[4096];
	for (const char *end = path; (end = strchr(end + 1, '/')) && (size_t)(end - path) < sizeof above;) {
		snprintf(above, sizeof above, "%.*s", (int)(end - path), path);
		if (!absent(above) && !is_mounted(above) && mount(above, above, NULL, MS_BIND | MS_REC, NULL) < 0)
			return false;
	}
	return true;
}

static bool keep(const char *path)
{
	return *path == '-' ? hide(path + 1) : seal(path + 1);
}

/* Closes every device but the usual ones, as a cgroup's program does where the host has cgroup v2. */
static bool close_devices(void)
{
	static const char *const usual[][2] = {
		{ "/dev/null", "/dev/null" },	    { "/dev/zero", "/dev/zero" },	{ "/dev/full", "/dev/full" },
		{ "/dev/random", "/dev/random" },   { "/dev/urandom", "/dev/urandom" }, { "/dev/tty", "/dev/tty" },
		{ "/dev/pts/ptmx", "/dev/ptmx" },   { "/dev/pts", "/dev/pts" },
		{ "/dev/kmsg", "/dev/kmsg" }, /* null, by now */
	};
	for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
		if (!absent(usual[i][0]) && mount(usual[i][0], usual[i][1], NULL, MS_BIND, NULL) < 0)
			return false;
	if (!set_attributes("/", (struct mount_attr){ .attr_set = MOUNT_ATTR_NODEV }))
		return false;
	for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
		if (!absent(usual[i][0]) && !set_attributes(usual[i][1], (struct mount_attr){ .attr_clr = MOUNT_ATTR_NODEV }))
			return false;
	return true;
}

/* A job of the supervisor's own user: files that are kept from others by their modes alone. No mount of the host comes in
 * any more, since it could be one of those; what has come since the supervisor made its own is sealed, too. */
static bool harden(const struct start *start)
{
	/* The list of a container runtime's default configuration (runtime-spec, config-linux.md, maskedPaths and readonlyPaths). */
	static const char *const kernel[] = { "=/proc/bus", "=/proc/fs", "=/proc/irq", "=/proc/sys",
					      "=/proc/sysrq-trigger", "=/proc/dynamic_debug", "=/proc/mtrr", "-/proc/acpi",
					      "-/proc/asound", "-/proc/kcore", "-/proc/keys", "-/proc/latency_stats",
					      "-/proc/sched_debug", "-/proc/scsi", "-/proc/timer_list", "-/proc/timer_stats",
					      "-/sys/firmware", "-/sys/devices/virtual/powercap" };
	bool closed = start->device_bytes > 0 || isolation.parts & PART_USER;
	char supervisor[32];
	snprintf(supervisor, sizeof supervisor, "=/proc/%d", getppid());
	if (!close_to_mounts("/") || !seal_kernel() || !(closed || close_devices()) || !keep(supervisor))
		return false;
	for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
		if (!keep(kernel[i]))
			return false;
	for (char **path = isolation.protected; *path; path++)
		if (!fix_above(*path + 1) || !keep(*path))
			return false;
	return isolation.parts & PART_SECCOMP || deny_user_namespaces();
}

bool is_own(const struct start *start)
{
	return !start->set_user || start->uid == geteuid();
}

/* Isolates by what only the job's own process can do, or by what not every job has. */
bool isolate_job(const struct request *request)
{
	const struct start *start = &request->start;
	return (!(isolation.parts & PART_CGROUP) || !*request->cgroup || enter_cgroup(request->cgroup)) &&
	       (!start->network_none || enter_network()) &&
	       (!is_own(start) || !(isolation.parts & PART_MOUNT) || harden(start));
}

static unsigned isolate_all(uid_t uid, gid_t gid)
{
	unsigned lacking = isolate(uid, gid);
	return lacking ? lacking : isolation.parts & PART_CGROUP && !enter_cgroup(isolation.cgroups) ? PART_CGROUP : 0;
}

/* Returns one part that cannot be had, and why; no part when all can. */
static struct failure try_parts(void)
{
	struct failure failure = { 0 };
	int ends[2];
	uid_t uid = geteuid();
	gid_t gid = getegid();
	if (pipe2(ends, O_CLOEXEC) < 0)
		return (struct failure){ (int32_t)(isolation.parts & PART_NAMESPACES), errno };
	pid_t pid = fork_isolated();
	if (pid == 0) {
		failure.stage = (int32_t)isolate_all(uid, gid);
		failure.error = errno;
		_exit(write(ends[1], &failure, sizeof failure) != sizeof failure);
	}
	/* A namespace that cannot be made fails the fork: then it is the pid namespace, or, tried again, the user's. */
	if (pid < 0)
		failure = (struct failure){ isolation.parts & PART_PID ? PART_PID : PART_USER, errno };
	close(ends[1]);
	if (pid > 0 && read(ends[0], &failure, sizeof failure) != sizeof failure)
		failure = (struct failure){ (int32_t)(isolation.parts & PART_NAMESPACES), EIO };
	close(ends[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return failure;
}

/* 0, or the errno that a filter of system calls fails with. In a user namespace its maker may load one. */
int try_filter(void)
{
	int status;
	pid_t pid = fork_isolated();
	if (pid == 0)
		_exit(filter_calls(false) ? 0 : errno);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/* Tries what was asked for, and goes on without what this host does not give, which it tells. */
bool find_parts(void)
{
	for (struct failure lacking; (isolation.parts & PART_NAMESPACES) && (lacking = try_parts()).stage;) {
		if (!tell(0, REPLY_LACKS, lacking.stage, 0, lacking.error))
			return false;
		isolation.parts &= ~(unsigned)lacking.stage;
		/* A pid namespace is of no use without its /proc, nor that without a mount namespace. */
		if (!(isolation.parts & PART_MOUNT))
			isolation.parts &= ~(unsigned)(PART_PID | PART_CGROUP);
	}
	int error = isolation.parts & PART_SECCOMP ? try_filter() : 0;
	if (!error)
		return true;
	isolation.parts &= ~(unsigned)PART_SECCOMP;
	return tell(0, REPLY_LACKS, PART_SECCOMP, 0, error);
}
