/*
 * What the fault suite runs as jobs: job KEY MARKS POOL STEP…
 *
 * Appends a line with its key to MARKS, so that starts can be counted, then takes its steps: `oAT:SIZE` and `eAT:SIZE`
 * write a piece of the file POOL on stdout and stderr, `pMS` pauses, `d` leaves a process in a session of its own that
 * keeps the pipes, `i` ignores SIGTERM, `xCODE` exits, `kSIGNAL` kills itself, `s` sleeps until it is ended.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FAILED = 99 }; /* no shape exits with it */

static void fail(const char *what)
{
	perror(what);
	_exit(FAILED);
}

static void write_all(int fd, const char *bytes, size_t size)
{
	while (size > 0) {
		ssize_t written = write(fd, bytes, size);
		if (written < 0)
			fail("write");
		bytes += written;
		size -= (size_t)written;
	}
}

static void mark(const char *key, const char *path)
{
	char line[128];
	int length = snprintf(line, sizeof line, "%s\n", key);
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0 || length < 0 || write(fd, line, (size_t)length) != length)
		fail(path);
	close(fd);
}

static const char *map(const char *path)
{
	struct stat found;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &found) < 0)
		fail(path);
	const char *pool = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (pool == MAP_FAILED)
		fail("mmap");
	close(fd);
	return pool;
}

static void sleep_for_good(void)
{
	for (;;)
		pause();
}

static void detach(void)
{
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child > 0)
		return;
	setsid();
	sleep_for_good();
}

static void pause_ms(long ms)
{
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };
	while (nanosleep(&left, &left) < 0)
		;
}

static void end_by(int number)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_UNBLOCK, &all, NULL);
	signal(number, SIG_DFL);
	raise(number);
	_exit(FAILED);
}

static void step(const char *text, const char *pool)
{
	char *rest;
	long first = strtol(text + 1, &rest, 10);
	long second = *rest == ':' ? strtol(rest + 1, NULL, 10) : 0;
	switch (text[0]) {
	case 'o':
	case 'e':
		write_all(text[0] == 'o' ? STDOUT_FILENO : STDERR_FILENO, pool + first, (size_t)second);
		break;
	case 'p':
		pause_ms(first);
		break;
	case 'd':
		detach();
		break;
	case 'i':
		signal(SIGTERM, SIG_IGN);
		break;
	case 'k':
		end_by((int)first);
		break;
	case 's':
		sleep_for_good();
		break;
	default:
		_exit((int)first);
	}
}

int main(int count, char **words)
{
	if (count < 4)
		return FAILED;
	mark(words[1], words[2]);
	const char *pool = map(words[3]);
	for (int i = 4; i < count; i++)
		step(words[i], pool);
	return 0;
}
