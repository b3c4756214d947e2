/* tells-clock: prints CLOCK_MONOTONIC in ns, first of all. */
#include <stdio.h>
#include <time.h>

int main(void)
{
	struct timespec now;
	if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
		return 1;
	return printf("%lld\n", (long long)now.tv_sec * 1000000000 + now.tv_nsec) < 0;
}
