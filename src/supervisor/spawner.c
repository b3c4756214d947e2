/* The spawner: takes starts from the daemon, forks a supervisor for each, tells when one is gone. */
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RECORD_ROOM = 4096 };

struct watched {
	uint64_t job;
	int fd; /* the reading end of its `control` */
};

static int epoll;
static int oom_score;

static void tell(uint64_t job, enum reply_kind kind, enum stage stage, int error)
{
	struct reply reply = { job, kind, 0, (int32_t)stage, error };
	if (send(DAEMON_FD, &reply, sizeof reply, MSG_NOSIGNAL) < 0)
		exit(EXIT_SUCCESS); /* no daemon, no spawner */
}

/* Tells once the supervisor that holds the FIFO `fd` is gone. */
static bool watch_control(uint64_t job, int fd)
{
	struct watched *watched = malloc(sizeof *watched);
	struct epoll_event event = { .events = 0, .data.ptr = watched }; /* a hang-up is always told */
	if (!watched)
		return false;
	*watched = (struct watched){ job, fd };
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0)
		return true;
	free(watched);
	return false;
}

static void hang_up(struct watched *watched)
{
	/* Closing alone is not enough: a supervisor forked a moment ago holds a copy yet. */
	epoll_ctl(epoll, EPOLL_CTL_DEL, watched->fd, NULL);
	close(watched->fd);
	tell(watched->job, REPLY_GONE, 0, 0);
	free(watched);
}

/* Takes the string at *at, which must end before `end`. */
static char *take_string(char **at, char *end)
{
	char *string = *at, *stop = memchr(string, '\0', (size_t)(end - string));
	if (!stop)
		return NULL;
	*at = stop + 1;
	return string;
}

static char **take_strings(char **at, char *end, uint32_t count)
{
	char **strings = count > FRAME_MAX ? NULL : calloc((size_t)count + 1, sizeof *strings);
	for (uint32_t i = 0; strings && i < count; i++)
		if (!(strings[i] = take_string(at, end))) {
			free(strings);
			return NULL;
		}
	return strings;
}

/* Points into the frame. False if it is not what it says. */
static bool parse(struct request *request, char *body, char *end)
{
	struct start *start = &request->start;
	if ((size_t)(end - body) < sizeof *start)
		return false;
	memcpy(start, body, sizeof *start);
	body += sizeof *start;
	if (start->group_count > (size_t)(end - body) / sizeof(gid_t) || start->argument_count == 0)
		return false;
	request->groups = (const gid_t *)(const void *)body;
	body += start->group_count * sizeof(gid_t);
	return (request->directory = take_string(&body, end)) && (request->cgroup = take_string(&body, end)) &&
	       (request->cwd = take_string(&body, end)) &&
	       (request->argv = take_strings(&body, end, start->argument_count)) &&
	       (request->envp = take_strings(&body, end, start->environment_count)) && body == end;
}

/* All but stdio, the daemon's socket and these two, which are other jobs' business. */
static void close_others(int one, int other)
{
	unsigned low = (unsigned)(one < other ? one : other), high = (unsigned)(one < other ? other : one);
	if (low > DAEMON_FD + 1)
		syscall(SYS_close_range, DAEMON_FD + 1U, low - 1, 0);
	if (high > low + 1)
		syscall(SYS_close_range, low + 1, high - 1, 0);
	syscall(SYS_close_range, high + 1, ~0U, 0);
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static bool make_file(int directory, const char *name, bool room)
{
	int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	/* Where the file system cannot set room aside, a full disk may lose a record. */
	if (room && fallocate(fd, 0, 0, RECORD_ROOM) < 0)
		room = false;
	close(fd);
	return true;
}

static bool make_files(int directory)
{
	return mkfifoat(directory, "control", 0600) == 0 && make_file(directory, "output", false) &&
	       make_file(directory, "index", false) && make_file(directory, "exit.new", true);
}

/*
 * Opens a job's directory. The daemon made it, or took the spare with its files; a
 * later daemon that knows nothing of the job has removed it, and then there is no
 * start. Of a job that runs or has run, it is refused.
 */
static int open_directory(const char *path)
{
	struct stat index;
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0)
		return -1;
	bool spare = fstatat(directory, "index", &index, AT_SYMLINK_NOFOLLOW) == 0 && index.st_size == 0;
	if (spare || make_files(directory))
		return directory;
	int error = errno;
	close(directory);
	errno = error;
	return -1;
}

static void discard(const char *path)
{
	static const char *const files[] = { "control", "output", "index", "exit.new" };
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	for (size_t i = 0; directory >= 0 && i < sizeof files / sizeof *files; i++)
		unlinkat(directory, files[i], 0);
	close_if_open(directory);
	rmdir(path);
}

/*
 * Makes a directory with a job's files, as `.spare` in the directory that the frame
 * names, when the daemon has nothing more urgent: on ext4 a new file costs tens of
 * microseconds, and a hundred times that where many were removed a moment ago.
 * That it cannot be made is the next start's business.
 */
static void take_prepare(char *body, char *end)
{
	char making[4096], made[4096];
	const char *path = take_string(&body, end);
	if (!path || (size_t)snprintf(making, sizeof making, "%s/.spare-%d", path, getpid()) >= sizeof making ||
	    (size_t)snprintf(made, sizeof made, "%s/.spare", path) >= sizeof made || access(made, F_OK) == 0 ||
	    mkdir(making, 0700) < 0)
		return;
	int directory = open_directory(making);
	if (directory < 0 || rename(making, made) < 0)
		discard(making);
	close_if_open(directory);
}

/* Returns the stage that failed, with errno, or 0 once a supervisor answers for the job. */
static enum stage start(uint64_t job, const struct request *request)
{
	const int flags = O_NONBLOCK | O_CLOEXEC;
	enum stage failed = STAGE_DIRECTORY;
	int control = -1, watching = -1;
	int directory = open_directory(request->directory);
	if (directory >= 0 &&
	    (control = openat(directory, "control", O_RDWR | flags)) >= 0 &&
	    (watching = openat(directory, "control", O_RDONLY | flags)) >= 0 && watch_control(job, watching)) {
		pid_t pid = fork();
		if (pid == 0) {
			close_others(directory, control);
			_exit(supervise(job, request, directory, control));
		}
		failed = pid > 0 ? 0 : STAGE_CLONE;
		watching = -1; /* watched: it hears of the hang-up below, if there was no fork */
	}
	int error = errno;
	close_if_open(directory);
	close_if_open(control);
	close_if_open(watching);
	errno = error;
	return failed;
}

static void take_start(uint64_t job, char *body, char *end)
{
	struct request request = { .oom_score = oom_score };
	errno = EBADMSG;
	enum stage failed = parse(&request, body, end) ? start(job, &request) : STAGE_REQUEST;
	if (failed)
		tell(job, REPLY_FAILED, failed, errno);
	free(request.argv);
	free(request.envp);
}

/* A job of an earlier daemon: tells when its supervisor is gone, which may be now. */
static void take_adopt(uint64_t job, char *body, char *end)
{
	char path[4096];
	char *directory = take_string(&body, end);
	int length = directory ? snprintf(path, sizeof path, "%s/control", directory) : -1;
	/* Opening for writing alone fails unless somebody reads. While this one is held,
	 * the reading end is opened with a writer there, and so hears of the hang-up. */
	int writing = length > 0 && (size_t)length < sizeof path ? open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC) : -1;
	int watching = writing < 0 ? -1 : open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	close_if_open(writing);
	if (watching >= 0 && watch_control(job, watching))
		return;
	close_if_open(watching);
	tell(job, REPLY_GONE, 0, 0);
}

static void take_frame(char *bytes)
{
	struct frame frame;
	memcpy(&frame, bytes, sizeof frame);
	char *body = bytes + sizeof frame, *end = bytes + frame.size;
	if (frame.type == FRAME_START)
		take_start(frame.job, body, end);
	else if (frame.type == FRAME_ADOPT)
		take_adopt(frame.job, body, end);
	else if (frame.type == FRAME_PREPARE)
		take_prepare(body, end);
	else
		tell(frame.job, REPLY_FAILED, STAGE_REQUEST, EBADMSG);
}

/* Reads what the daemon sent and takes every whole frame. The daemon is gone, or not to be understood: the end. */
static void take_frames(void)
{
	static char *buffer;
	static size_t room, held;
	if (room - held < 64 << 10) {
		room = room ? room * 2 : 256 << 10;
		buffer = room > 4 * FRAME_MAX ? NULL : realloc(buffer, room);
		if (!buffer)
			exit(EXIT_FAILURE);
	}
	ssize_t n = recv(DAEMON_FD, buffer + held, room - held, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		exit(EXIT_SUCCESS);
	held += (size_t)n;
	size_t taken = 0;
	for (struct frame frame; held - taken >= sizeof frame; taken += frame.size) {
		memcpy(&frame, buffer + taken, sizeof frame);
		if (frame.size < sizeof frame || frame.size > FRAME_MAX)
			exit(EXIT_FAILURE);
		if (held - taken < frame.size)
			break;
		take_frame(buffer + taken);
	}
	held -= taken;
	memmove(buffer, buffer + taken, held);
}

static bool read_oom_score(void)
{
	char value[16] = "";
	int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
	bool done = fd >= 0 && read(fd, value, sizeof value - 1) > 0;
	close_if_open(fd);
	oom_score = atoi(value);
	return done;
}

static bool prepare(void)
{
	sigset_t all;
	struct rlimit files;
	struct epoll_event event = { .events = EPOLLIN };
	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, NULL) < 0 || !prepare_inheritance() || !read_oom_score() ||
	    signal(SIGCHLD, SIG_IGN) == SIG_ERR)
		return false; /* with SIGCHLD ignored the kernel reaps the supervisors */
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return false;
	files.rlim_cur = files.rlim_max; /* one for each running job */
	if (setrlimit(RLIMIT_NOFILE, &files) < 0 || fcntl(DAEMON_FD, F_SETFD, FD_CLOEXEC) < 0)
		return false;
	/* Whatever else the daemon had open. */
	syscall(SYS_close_range, DAEMON_FD + 1U, ~0U, 0);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	return epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, DAEMON_FD, &event) == 0;
}

int main(void)
{
	struct epoll_event events[64];
	if (!prepare()) {
		perror("supervisor: it is started by jobsd, with a socket as descriptor 3");
		return EXIT_FAILURE;
	}
	for (;;) {
		int count = epoll_wait(epoll, events, 64, -1);
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr)
				hang_up(events[i].data.ptr);
			else
				take_frames();
		}
	}
}
