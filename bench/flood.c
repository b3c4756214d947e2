/*
 * flood MS GATE: writes a page to stdout, waits until the file GATE is there, and then writes zeros as fast as it can for
 * MS milliseconds. Each page begins with its offset. Ends with "BYTES NANOSECONDS" on stderr.
 * flood MS: the same at once, into a pipe that another process reads and forgets, as cat >/dev/null would; that one's
 * "CPU-NANOSECONDS" follow.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 1 << 20, PIPE = 64 << 10 };

static int64_t ns_of(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Each page of it begins with its offset. */
static void write_all(char *block, size_t size, uint64_t offset)
{
	for (size_t at = 0; at < size; at += PAGE) {
		uint64_t own = offset + at;
		memcpy(block + at, &own, sizeof own);
	}
	for (size_t done = 0; done < size;) {
		ssize_t n = write(STDOUT_FILENO, block + done, size - done);
		if (n <= 0)
			exit(1);
		done += (size_t)n;
	}
}

static void flood(int64_t ms, const char *gate)
{
	static char block[BLOCK];
	write_all(block, PAGE, 0);
	while (gate && access(gate, F_OK) < 0)
		usleep(10000);
	uint64_t written = PAGE;
	int64_t began = ns_of(CLOCK_MONOTONIC), ns = 0;
	for (; ns < ms * 1000000; ns = ns_of(CLOCK_MONOTONIC) - began) {
		write_all(block, BLOCK, written);
		written += BLOCK;
	}
	fprintf(stderr, "%llu %lld\n", (unsigned long long)written, (long long)ns);
}

int main(int argc, char **argv)
{
	static char buffer[PIPE];
	int ends[2];
	int64_t ms = argc > 1 ? atoll(argv[1]) : 0;
	if (argc > 2) {
		flood(ms, argv[2]);
		return 0;
	}
	if (pipe(ends) < 0)
		return 1;
	pid_t pid = fork();
	if (pid == 0) {
		if (dup2(ends[1], STDOUT_FILENO) < 0)
			_exit(1);
		close(ends[0]);
		flood(ms, NULL);
		_exit(0);
	}
	close(ends[1]);
	while (read(ends[0], buffer, sizeof buffer) > 0)
		;
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		return 1;
	fprintf(stderr, "%lld\n", (long long)ns_of(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}
