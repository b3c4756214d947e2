/* Says what time it is, in ns of CLOCK_MONOTONIC, a line each 20 ms: COUNT lines. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 }, now;
	char line[32];
	for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--) {
		nanosleep(&pause, NULL);
		clock_gettime(CLOCK_MONOTONIC, &now);
		int length = snprintf(line, sizeof line, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
		if (write(STDOUT_FILENO, line, (size_t)length) != length)
			return 1;
	}
	return 0;
}
