/*
 * One job's supervisor.
 *
 *   running ──order | time limit──▶ stopping ──deadline──▶ killing ──nothing runs──▶ exit record
 *      └──────── main process ended, others live ─────────────▲
 *
 * The job's end is what the kernel says of the main process and its tree; that a
 * pipe is still open says nothing.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_RECORD_SIZE = 4096, BY_SIZE = 1024, PUMP_SIZE = 64 << 10, FIRST_PAUSE_MS = 20, LONGEST_PAUSE_MS = 5000,
       PATIENCE_MS = 30000, TURN = 256 };

enum phase { RUNNING, STOPPING, KILLING };

struct supervisor {
	int64_t grace_ms; /* after the time limit */
	int directory, control, signals, out, err;
	struct tree tree;
	struct log log;
	enum phase phase;
	const char *cause; /* of the end: none, stop or timeout */
	unsigned orders;
	char by[BY_SIZE]; /* who gave the first one */
	bool escalated, main_ended;
	bool unreaped; /* more children may have ended than were reaped in one turn */
	unsigned killed;
	pid_t pid; /* of the main process, as the host numbers it */
	int status;
	struct rusage usage;
	int64_t started_ns, ended_ns;             /* since the epoch */
	int64_t started_clock_ns, ended_clock_ns; /* monotonic */
	int64_t deadline_ns;                      /* monotonic, or INT64_MAX */
};

/* Milliseconds from now on the monotonic clock; as good as never where that overflows. */
static int64_t after_ms(int64_t ms)
{
	int64_t ns;
	if (__builtin_mul_overflow(ms, 1000000, &ns) || __builtin_add_overflow(ns, now_ns(CLOCK_MONOTONIC), &ns))
		return INT64_MAX;
	return ns;
}

/* Opens the cgroup by the host's mounts: in those of the job, nobody may write to a cgroup. */
static int open_tree(struct tree *tree, const char *cgroup)
{
	tree->cgroup = tree->events = -1;
	tree->whole = isolation.parts & PART_PID;
	if (!*cgroup)
		return 0;
	tree->cgroup = openat(ROOT_FD, cgroup + strspn(cgroup, "/"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree->cgroup < 0)
		return -1;
	if (tree->whole)
		return 0;
	tree->events = openat(tree->cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return tree->events < 0 ? -1 : 0;
}

/* The pipes are the job's, so that it can open /dev/stdout. */
static bool give_pipes(const struct start *start, int out, int err)
{
	return !start->set_user ||
	       (fchown(out, start->uid, start->gid) == 0 && fchown(err, start->uid, start->gid) == 0);
}

/* Returns 0, or the stage that failed, with errno. The daemon writes limits and record before it says go. */
static enum stage launch(struct supervisor *self, const struct request *request, int out, int err)
{
	char go;
	const struct start *start = &request->start;
	enum stage failed = !give_pipes(start, out, err)                        ? STAGE_PIPE :
			    !renew_mounts() || !settle_tmp(start->private_tmp) ? STAGE_ISOLATION :
			    open_tree(&self->tree, request->cgroup) < 0         ? STAGE_CGROUP : 0;
	int error = errno;
	if (!take_bytes(self->control, &go, sizeof go) || go != GO) {
		failed = STAGE_REQUEST;
		error = ECANCELED;
	}
	errno = error;
	if (failed)
		return failed;
	if (request->start.device_bytes > 0 &&
	    !devices_set(self->tree.cgroup, request->devices, request->start.device_bytes))
		return STAGE_DEVICES;
	struct born born = { 0 };
	failed = give_birth(request, self->tree.cgroup, out, request->start.merge ? out : err, &born);
	error = errno;
	self->tree.main = born.inner;
	self->pid = born.outer;
	self->started_ns = born.started_ns;
	self->started_clock_ns = born.started_clock_ns;
	close(ROOT_FD); /* nothing of the host's mounts stays open longer than it is needed */
	close(out);
	close(err);
	errno = error;
	return failed;
}

static bool write_record(int fd, const char *text, int length)
{
	ssize_t n;
	for (int done = 0; done < length; done += (int)n)
		if ((n = pwrite(fd, text + done, (size_t)(length - done), done)) <= 0)
			return false;
	return length > 0 && ftruncate(fd, length) == 0;
}

static int64_t micros(struct timeval time)
{
	return (int64_t)time.tv_sec * 1000000 + time.tv_usec;
}

/* True too when nobody can read it any more, since the job's directory was removed, and when the rename has happened
 * although it failed: both are ENOENT. */
static bool record_exit(struct supervisor *self, int fd, const char *text, int length)
{
	struct stat record;
	if (fstat(fd, &record) == 0 && record.st_nlink == 0)
		return true;
	return log_finish(&self->log) && write_record(fd, text, length) &&
	       (renameat(self->directory, "exit.new", self->directory, "exit") == 0 || errno == ENOENT);
}

/* A disk may take later what it does not take now, and no kernel tells when. */
static bool may_pass(int error)
{
	return error == EIO || error == EROFS || error == EDQUOT || error == ENOSPC || error == ENOMEM;
}

/* CRC-32 as zlib has it: ISO 3309, the polynomial reflected. */
static uint32_t crc32(const char *bytes, int count)
{
	uint32_t crc = UINT32_MAX;
	for (int i = 0; i < count; i++) {
		crc ^= (unsigned char)bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

/*
 * A record that the disk does not take is tried again for a while, with a growing pause: until then the supervisor lives, so
 * that nobody takes the job for lost. After that, and at once where it can never be written, the job's place is worth more
 * than its record. Returns 0 or the errno.
 */
static int write_exit(struct supervisor *self, int fd)
{
	char text[EXIT_RECORD_SIZE];
	bool exited = WIFEXITED(self->status);
	int length = snprintf(
		text, sizeof text,
		"version 1\npid %d\ncause %s\nby %s\nescalated %d\nkilled %u\ncode %d\nsignal %d\ncore %d\n"
		"started_ns %" PRId64 "\nended_ns %" PRId64 "\nelapsed_ns %" PRId64 "\n"
		"user_us %" PRId64 "\nsystem_us %" PRId64 "\nmax_rss_bytes %ld\n"
		"size %" PRIu64 "\nfirst %" PRIu64 "\ndropped %" PRIu64 "\n",
		self->pid, self->cause, self->by, self->escalated, self->killed, exited ? WEXITSTATUS(self->status) : -1,
		exited ? 0 : WTERMSIG(self->status), !exited && WCOREDUMP(self->status), self->started_ns, self->ended_ns,
		self->ended_clock_ns - self->started_clock_ns, micros(self->usage.ru_utime), micros(self->usage.ru_stime),
		self->usage.ru_maxrss * 1024, self->log.size, self->log.first, self->log.dropped);
	/* Whoever reads it can tell a record that a disk has damaged from the one that was written. */
	length += snprintf(text + length, sizeof text - (size_t)length, "crc32 %08" PRIx32 "\n", crc32(text, length));
	int64_t deadline_ns = after_ms(PATIENCE_MS);
	for (int pause = FIRST_PAUSE_MS; !record_exit(self, fd, text, length);) {
		int error = errno;
		if (!may_pass(error) || now_ns(CLOCK_MONOTONIC) > deadline_ns)
			return error;
		poll(NULL, 0, pause);
		pause = pause * 2 < LONGEST_PAUSE_MS ? pause * 2 : LONGEST_PAUSE_MS;
	}
	return 0;
}

/* Returns how many bytes there were. */
static size_t pump(struct supervisor *self, int *pipe, enum source source)
{
	static char buffer[PUMP_SIZE];
	ssize_t n = *pipe < 0 ? 0 : read(*pipe, buffer, sizeof buffer);
	if (n > 0) {
		log_append(&self->log, source, buffer, (size_t)n);
		return (size_t)n;
	}
	if (*pipe >= 0 && (n == 0 || (errno != EAGAIN && errno != EINTR))) {
		close(*pipe);
		*pipe = -1;
	}
	return 0;
}

/* What was written before the end is in the pipe. More than it holds now is not waited
 * for: whoever still has it open, and writes to it, is not of the job. */
static void drain(struct supervisor *self, int *pipe, enum source source)
{
	int held = 0;
	if (*pipe < 0 || ioctl(*pipe, FIONREAD, &held) < 0)
		return;
	for (size_t n = 1; held > 0 && n > 0; held -= (int)n)
		n = pump(self, pipe, source);
}

static void kill_all(struct supervisor *self)
{
	if (self->phase != KILLING)
		self->killed = tree_count(&self->tree);
	self->phase = KILLING;
	self->deadline_ns = INT64_MAX;
	tree_kill(&self->tree);
}

static void stop(struct supervisor *self, const char *cause, int signal, int64_t grace_ms)
{
	int64_t deadline_ns = after_ms(grace_ms);
	if (self->phase == KILLING)
		return;
	if (self->phase == RUNNING) {
		self->cause = cause;
		self->deadline_ns = INT64_MAX;
	}
	if (signal == SIGKILL || grace_ms <= 0) {
		/* Asked for at once it is no escalation; after a signal that was not obeyed it is. */
		self->escalated = self->phase == STOPPING;
		kill_all(self);
		return;
	}
	self->phase = STOPPING;
	if (deadline_ns < self->deadline_ns)
		self->deadline_ns = deadline_ns;
	tree_signal(&self->tree, signal);
	/* A stopped process takes a signal only when it goes on. */
	tree_signal(&self->tree, SIGCONT);
}

static void note_by(struct supervisor *self, const char *by, size_t size)
{
	size_t length = strlen(self->by);
	for (size_t i = 0; i < size && by[i] > ' ' && by[i] < 127 && length + 1 < sizeof self->by; i++)
		self->by[length++] = by[i];
}

static void take_order(struct supervisor *self)
{
	struct order order;
	while (read(self->control, &order, sizeof order) == sizeof order) {
		if (order.signal == ORDER_BY) {
			if (self->orders == 1)
				note_by(self, order.by, sizeof order.by);
		} else if (!self->main_ended || self->phase != RUNNING) {
			self->orders++;
			stop(self, "stop", order.signal, order.grace_ms);
		}
	}
}

static void reach_deadline(struct supervisor *self)
{
	if (self->phase == RUNNING) {
		if (!self->main_ended) /* else it was in time */
			stop(self, "timeout", SIGTERM, self->grace_ms);
		return;
	}
	self->escalated = true;
	kill_all(self);
}

/*
 * Reaps the main process and the orphans that an init or a subreaper inherits; gives on what an init was sent. No more than
 * a turn's: a job that leaves orphans, or sends signals, faster than they are taken would never reach its time limit.
 */
static void reap(struct supervisor *self)
{
	struct signalfd_siginfo told;
	struct rusage usage;
	int status;
	pid_t pid = 0;
	for (int i = 0; i < TURN && read(self->signals, &told, sizeof told) == sizeof told; i++)
		if (told.ssi_signo != SIGCHLD && !self->main_ended)
			kill(self->tree.main, (int)told.ssi_signo);
	for (int i = 0; i < TURN && (pid = wait4(-1, &status, WNOHANG, &usage)) > 0; i++) {
		if (pid != self->tree.main)
			continue;
		self->main_ended = true;
		self->status = status;
		self->usage = usage;
		self->ended_ns = now_ns(CLOCK_REALTIME);
		self->ended_clock_ns = now_ns(CLOCK_MONOTONIC);
	}
	self->unreaped = pid > 0;
}

static struct timespec time_left(int64_t deadline_ns)
{
	int64_t left = deadline_ns - now_ns(CLOCK_MONOTONIC);
	if (left < 0)
		left = 0;
	return (struct timespec){ .tv_sec = left / 1000000000, .tv_nsec = left % 1000000000 };
}

/* Returns 0 when nothing of the job runs any more, or the errno by which nothing can be watched: the end of the job is then
 * left to the daemon. */
static int watch(struct supervisor *self)
{
	while (!self->main_ended || tree_populated(&self->tree)) {
		if (self->main_ended && (self->phase == RUNNING || (self->phase == KILLING && !self->tree.whole)))
			kill_all(self);
		struct pollfd ready[] = {
			{ .fd = self->signals, .events = POLLIN },
			{ .fd = self->control, .events = POLLIN },
			{ .fd = self->out, .events = POLLIN },
			{ .fd = self->err, .events = POLLIN },
			/* It is ready until it is read, which tree_populated does once the main process has ended. */
			{ .fd = self->main_ended ? self->tree.events : -1, .events = POLLPRI },
		};
		struct timespec left = time_left(self->unreaped ? 0 : self->deadline_ns);
		if (ppoll(ready, 5, !self->unreaped && self->deadline_ns == INT64_MAX ? NULL : &left, NULL) < 0) {
			if (errno == EINTR || errno == ENOMEM)
				continue;
			return errno; /* EINVAL: somebody has limited this process's open files */
		}
		if (ready[2].revents)
			pump(self, &self->out, SOURCE_STDOUT);
		if (ready[3].revents)
			pump(self, &self->err, SOURCE_STDERR);
		if (ready[0].revents || self->unreaped)
			reap(self);
		if (ready[1].revents)
			take_order(self);
		if (now_ns(CLOCK_MONOTONIC) >= self->deadline_ns)
			reach_deadline(self);
	}
	drain(self, &self->out, SOURCE_STDOUT);
	drain(self, &self->err, SOURCE_STDERR);
	return 0;
}

static void release(struct request *request)
{
	free(request->argv);
	free(request->envp);
	free(request->body);
}

int supervise(uint64_t job, struct request *request, const struct spare *spare)
{
	static struct supervisor supervisor;
	struct supervisor *self = &supervisor;
	const struct start *start = &request->start;
	*self = (struct supervisor){ .grace_ms = start->grace_ms, .directory = spare->directory,
				     .control = spare->control, .signals = spare->signals, .out = spare->out[0],
				     .err = spare->err[0], .log = spare->log, .cause = "none",
				     .deadline_ns = INT64_MAX };
	self->log.limit = start->log_limit;
	self->log.keep_oldest = start->keep_oldest;
	enum stage failed = launch(self, request, spare->out[1], spare->err[1]);
	int error = errno;
	release(request);
	if (!failed && !log_start(&self->log, self->pid, self->started_ns, self->started_clock_ns)) {
		failed = STAGE_OUTPUT;
		error = errno;
		tree_kill(&self->tree);
		waitpid(self->tree.main, NULL, 0);
	}
	/* No daemon any more: the next one learns it from the job's directory. */
	tell(job, failed ? REPLY_FAILED : REPLY_STARTED, self->pid, failed, error);
	if (failed)
		return -1;
	close(DAEMON_FD);
	tree_identify(&self->tree);
	if (start->time_limit_ms > 0)
		self->deadline_ns = after_ms(start->time_limit_ms);
	error = watch(self);
	return error ? error : write_exit(self, spare->record);
}
