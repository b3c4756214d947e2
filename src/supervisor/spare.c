/* A spare: a supervisor that has all that needs no job, and waits to be given one. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RECORD_ROOM = 4096 };

static int make_file(int directory, const char *name)
{
	return openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

/* Makes what a job's directory holds. Returns 0 or the stage that failed, with errno. */
static enum stage make_files(struct spare *spare, const char *path)
{
	if (mkdir(path, 0700) < 0)
		return STAGE_DIRECTORY;
	spare->directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (spare->directory < 0 || mkfifoat(spare->directory, "control", 0600) < 0)
		return STAGE_DIRECTORY;
	spare->control = openat(spare->directory, "control", O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	spare->log.supervisor = spare->pid;
	spare->log.output = make_file(spare->directory, "output");
	spare->log.index = make_file(spare->directory, "index");
	spare->record = make_file(spare->directory, "exit.new");
	if (spare->control < 0 || spare->log.output < 0 || spare->log.index < 0 || spare->record < 0)
		return STAGE_DIRECTORY;
	/* Where the file system cannot set room aside, a record waits for a full disk to have some. */
	if (fallocate(spare->record, 0, 0, RECORD_ROOM) < 0 && errno != EOPNOTSUPP)
		return STAGE_DIRECTORY;
	return log_prepare(&spare->log) ? 0 : STAGE_OUTPUT;
}

static int open_pipe(int ends[2])
{
	return pipe2(ends, O_CLOEXEC) < 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0 ? -1 : 0;
}

static enum stage prepare(struct spare *spare)
{
	/* An init passes the signals that it is sent on to its job (supervise.c). */
	static const int forwarded[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH };
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	for (size_t i = 0; isolation.parts & PART_PID && i < sizeof forwarded / sizeof *forwarded; i++)
		sigaddset(&signals, forwarded[i]);
	spare->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (spare->signals < 0 || setsid() < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return STAGE_CLONE;
	hasten(0);
	return open_pipe(spare->out) < 0 || open_pipe(spare->err) < 0 ? STAGE_PIPE : 0;
}

/* Removes the files of a start that failed, by the descriptor of their directory: the daemon may have renamed that. The
 * directory itself is looked up in the host's mounts, because this process may have a /tmp of its own. */
static void discard(const struct spare *spare, const char *path)
{
	static const char *const files[] = { "control", "output", "index", "exit.new" };
	for (size_t i = 0; spare->directory >= 0 && i < sizeof files / sizeof *files; i++)
		unlinkat(spare->directory, files[i], 0);
	unlinkat(ROOT_FD, path + strspn(path, "/"), AT_REMOVEDIR);
}

/* Returns the frame that the daemon wrote, or NULL: it is gone, or not to be understood. */
static char *take_frame(int control, struct frame *frame)
{
	if (!take_bytes(control, frame, sizeof *frame) || frame->size < sizeof *frame || frame->size > FRAME_MAX)
		return NULL;
	char *body = malloc(frame->size);
	if (body && take_bytes(control, body, frame->size - sizeof *frame))
		return body;
	free(body);
	return NULL;
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
	if (start->limit_count > (size_t)(end - body) / sizeof(struct limit))
		return false;
	request->limits = (const struct limit *)(const void *)body;
	body += start->limit_count * sizeof(struct limit);
	if (start->device_bytes > (size_t)(end - body))
		return false;
	request->devices = body;
	body += start->device_bytes;
	if (start->group_count > (size_t)(end - body) / sizeof(gid_t) || start->argument_count == 0)
		return false;
	request->groups = (const gid_t *)(const void *)body;
	body += start->group_count * sizeof(gid_t);
	return (request->cgroup = take_string(&body, end)) &&
	       (request->cwd = take_string(&body, end)) &&
	       (request->argv = take_strings(&body, end, start->argument_count)) &&
	       (request->envp = take_strings(&body, end, start->environment_count)) && body == end;
}

int stand_by(uint64_t job, const char *jobs, uid_t uid, gid_t gid)
{
	struct spare spare = { .directory = -1, .pid = outer_self() };
	struct request request;
	struct frame frame;
	char path[4096];
	syscall(SYS_close_range, ROOT_FD + 1U, ~0U, 0);
	errno = ENAMETOOLONG;
	enum stage failed = (size_t)snprintf(path, sizeof path, "%s/.spare-%d", jobs, spare.pid) < sizeof path ?
				    make_files(&spare, path) : STAGE_DIRECTORY;
	if (!failed)
		failed = prepare(&spare);
	if (!failed && (!join_own_keyring() || isolate(uid, gid)))
		failed = STAGE_ISOLATION;
	if (failed) {
		tell(job, REPLY_FAILED, 0, failed, errno);
		discard(&spare, path);
		return 1;
	}
	request.body = tell(job, REPLY_READY, spare.pid, 0, 0) ? take_frame(spare.control, &frame) : NULL;
	if (!request.body) {
		discard(&spare, path);
		return 1;
	}
	close(IDLE_FD);
	if (frame.type != FRAME_START || !parse(&request, request.body, request.body + frame.size - sizeof frame)) {
		tell(job, REPLY_FAILED, 0, STAGE_REQUEST, EBADMSG);
		return 1;
	}
	int status = supervise(job, &request, &spare);
	if (status >= 0)
		return status;
	discard(&spare, path);
	return 1;
}
