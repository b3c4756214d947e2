/* Tells the daemon and hears from it; and has two calls that most files make. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Returns false when there is no daemon any more. */
bool tell(uint64_t job, enum reply_kind kind, pid_t pid, enum stage stage, int error)
{
	struct reply reply = { job, kind, pid, (int32_t)stage, error };
	return send(DAEMON_FD, &reply, sizeof reply, MSG_NOSIGNAL) >= 0;
}

/* Reads `count` bytes that the daemon wrote to `control`; false when it is gone instead. */
bool take_bytes(int control, void *into, size_t count)
{
	char *bytes = into;
	struct pollfd ready[] = { { .fd = control, .events = POLLIN }, { .fd = DAEMON_FD } };
	while (count > 0) {
		ssize_t n = read(control, bytes, count);
		if (n > 0) {
			bytes += n;
			count -= (size_t)n;
			continue;
		}
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			return false;
		poll(ready, 2, -1);
		if (ready[1].revents)
			return false;
	}
	return true;
}

void close_if_open(int fd)
{
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
}

int64_t now_ns(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now); /* fails for an unknown clock alone */
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
