/* The spawner: forks a supervisor for each job, ahead of it, and tells when one is gone. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A supervisor whose end a descriptor tells: a pidfd, or the reading end of an adopted job's `control`. */
struct watched {
	uint64_t job;
	bool child;
};

static struct watched *watched; /* by descriptor */
static size_t watched_room;
static int epoll;
static int idle; /* the reading end of the pipe that spares hold */
static int stops; /* told of supervisors that are stopped */

/* No daemon, no spawner; but it stays until its spares have put their files away. */
static _Noreturn void leave(int status)
{
	char byte;
	close(DAEMON_FD);
	close(IDLE_FD);
	while (read(idle, &byte, 1) < 0 && errno == EINTR)
		;
	exit(status);
}

static void answer(uint64_t job, enum reply_kind kind, enum stage stage, int error)
{
	if (!tell(job, kind, 0, stage, error))
		leave(EXIT_SUCCESS);
}

static bool make_room(int fd)
{
	size_t room = watched_room ? watched_room : 64;
	while (room <= (size_t)fd)
		room *= 2;
	struct watched *larger = room == watched_room ? watched : realloc(watched, room * sizeof *watched);
	if (!larger)
		return false;
	watched = larger;
	watched_room = room;
	return true;
}

/* Tells once when `fd` says that the supervisor is gone: a pidfd by being readable, a FIFO by a hang-up. */
static bool watch_supervisor(uint64_t job, int fd, bool child)
{
	struct epoll_event event = { .events = child ? EPOLLIN : 0, .data.fd = fd };
	if (!make_room(fd))
		return false;
	watched[fd] = (struct watched){ job, child };
	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void be_gone(int fd)
{
	siginfo_t status = { 0 };
	bool known = watched[fd].child && waitid(P_PIDFD, (id_t)fd, &status, WEXITED) == 0;
	bool killed = known && status.si_code != CLD_EXITED;
	/* Closing alone is not enough: a spare forked a moment ago holds a copy yet. */
	epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
	close(fd);
	if (!tell(watched[fd].job, REPLY_GONE, killed ? status.si_status : 0, 0, known && !killed ? status.si_status : 0))
		leave(EXIT_SUCCESS);
}

/* A supervisor that is stopped would start no job and end none: it is made to go on. Its parent alone is told of that. */
static void continue_stopped(void)
{
	struct signalfd_siginfo told;
	siginfo_t child = { 0 };
	while (read(stops, &told, sizeof told) == sizeof told)
		;
	while (waitid(P_ALL, 0, &child, WSTOPPED | WNOHANG) == 0 && child.si_pid > 0) {
		kill(child.si_pid, SIGCONT);
		child.si_pid = 0;
	}
}

/* The child waits to be reaped until it has been watched, so its pid is its own. */
static void take_spare(uint64_t job, const char *jobs)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	pid_t pid = fork_isolated();
	if (pid == 0)
		_exit(stand_by(job, jobs, uid, gid));
	int pidfd = pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd >= 0 && watch_supervisor(job, pidfd, true))
		return;
	close_if_open(pidfd);
	int error = errno;
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	answer(job, REPLY_FAILED, STAGE_CLONE, error);
}

/* A job of an earlier daemon: tells when its supervisor is gone, which may be now. */
static void take_adopt(uint64_t job, const char *directory, size_t size)
{
	bool whole = size > 0 && memchr(directory, '\0', size);
	errno = ENOENT;
	/* A link is no job's directory: somebody else has put it there. */
	int place = whole ? open(directory, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
	/* Opening for writing alone fails unless somebody reads. While this one is held,
	 * the reading end is opened with a writer there, and so hears of the hang-up. */
	int writing = place < 0 ? -1 : openat(place, "control", O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	int watching = writing < 0 ? -1 : openat(place, "control", O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	close_if_open(place);
	close_if_open(writing);
	if (watching >= 0 && watch_supervisor(job, watching, false))
		return;
	int error = errno;
	close_if_open(watching);
	/* Only where nobody reads, or there is nothing to read, is it gone: without a descriptor nobody knows. */
	if (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOSPC || error == EIO)
		answer(job, REPLY_FAILED, STAGE_REQUEST, error);
	else
		answer(job, REPLY_GONE, 0, 0);
}

/* New device rules for a job that runs. */
static void take_devices(uint64_t job, const char *cgroup, size_t size)
{
	const char *end = memchr(cgroup, '\0', size);
	if (!end) {
		answer(job, REPLY_FAILED, STAGE_REQUEST, EBADMSG);
		return;
	}
	int directory = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	enum stage failed = directory < 0 ? STAGE_CGROUP : STAGE_DEVICES;
	bool done = directory >= 0 && devices_set(directory, end + 1, size - (size_t)(end + 1 - cgroup));
	close_if_open(directory);
	if (done)
		answer(job, REPLY_DONE, 0, 0);
	else
		answer(job, REPLY_FAILED, failed, errno);
}

static void take_frame(const char *bytes, const char *jobs)
{
	struct frame frame;
	memcpy(&frame, bytes, sizeof frame);
	if (frame.type == FRAME_SPARE)
		take_spare(frame.job, jobs);
	else if (frame.type == FRAME_ADOPT)
		take_adopt(frame.job, bytes + sizeof frame, frame.size - sizeof frame);
	else if (frame.type == FRAME_DEVICES)
		take_devices(frame.job, bytes + sizeof frame, frame.size - sizeof frame);
	else
		answer(frame.job, REPLY_FAILED, STAGE_REQUEST, EBADMSG);
}

/* Reads what the daemon sent and takes every whole frame. The daemon is gone, or not to be understood: the end. */
static void take_frames(const char *jobs)
{
	static char buffer[64 << 10];
	static size_t held;
	ssize_t n = recv(DAEMON_FD, buffer + held, sizeof buffer - held, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		leave(EXIT_SUCCESS);
	held += (size_t)n;
	size_t taken = 0;
	for (struct frame frame; held - taken >= sizeof frame; taken += frame.size) {
		memcpy(&frame, buffer + taken, sizeof frame);
		if (frame.size < sizeof frame || frame.size > sizeof buffer)
			leave(EXIT_FAILURE);
		if (held - taken < frame.size)
			break;
		take_frame(buffer + taken, jobs);
	}
	held -= taken;
	memmove(buffer, buffer + taken, held);
}

/* Whatever else the daemon had open goes. */
static bool prepare_descriptors(void)
{
	int ends[2];
	struct epoll_event event = { .events = EPOLLIN, .data.fd = DAEMON_FD };
	if (fcntl(DAEMON_FD, F_SETFD, FD_CLOEXEC) < 0 || syscall(SYS_close_range, DAEMON_FD + 1U, ~0U, 0) < 0)
		return false;
	/* The lowest two that are free: the reading end is IDLE_FD for a moment, the other ROOT_FD. */
	if (pipe2(ends, O_CLOEXEC) < 0 || (idle = fcntl(ends[0], F_DUPFD_CLOEXEC, ROOT_FD + 1)) < 0 ||
	    dup3(ends[1], IDLE_FD, O_CLOEXEC) < 0 || close(ends[1]) < 0)
		return false;
	if (open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) != ROOT_FD)
		return false;
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, DAEMON_FD, &event) < 0)
		return false;
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	event.data.fd = stops = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	return stops >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, stops, &event) == 0;
}

/* The daemon's pid is that of whoever made the socket. Where the daemon has died the parent is another process by now. */
static void hasten_daemon(void)
{
	struct ucred daemon;
	socklen_t size = sizeof daemon;
	if (getsockopt(DAEMON_FD, SOL_SOCKET, SO_PEERCRED, &daemon, &size) < 0 || daemon.pid != getppid())
		return;
	hasten(daemon.pid);
	give_weight(daemon.pid);
}

static bool prepare(void)
{
	sigset_t all;
	struct rlimit files;
	sigfillset(&all);
	/* A job could go to where the daemon stands, by /proc/self/cwd: below what its mounts hide, and busy. */
	if (chdir("/") < 0)
		return false;
	if (sigprocmask(SIG_SETMASK, &all, NULL) < 0 || !read_oom_score() || !put_back_inherited() ||
	    getrlimit(RLIMIT_NOFILE, &files) < 0)
		return false;
	hasten_daemon();
	/* Whoever has the user of the spawner, a supervisor or a job before its exec could look into them, and trace them. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return false;
	files.rlim_cur = files.rlim_max; /* one for each running job */
	return setrlimit(RLIMIT_NOFILE, &files) == 0 && prepare_descriptors() && find_parts();
}

int main(int argc, char **argv)
{
	struct epoll_event events[64];
	if (argc >= 2 && strcmp(argv[1], "probe") == 0)
		return probe(argv[2]);
	if (argc >= 4)
		isolation = (struct isolation){ (unsigned)atoi(argv[2]), argv[3], argv + 4 };
	if (argc < 4 || !prepare()) {
		perror("supervisor: it is started by jobsd, with the jobs' directory, the parts of the isolation, "
		       "where cgroup v2 is, paths to protect, and a socket as descriptor 3");
		return EXIT_FAILURE;
	}
	for (;;) {
		int count = epoll_wait(epoll, events, 64, -1);
		for (int i = 0; i < count; i++) {
			if (events[i].data.fd == DAEMON_FD)
				take_frames(argv[1]);
			else if (events[i].data.fd == stops)
				continue_stopped();
			else
				be_gone(events[i].data.fd);
		}
	}
}
