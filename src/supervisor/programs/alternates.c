/* alternates COUNT SIZE: writes SIZE bytes to stdout, then to stderr, and so on; each once the last has been taken. */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char bytes[4096];
	int count = argc == 3 ? atoi(argv[1]) : 0, size = argc == 3 ? atoi(argv[2]) : 0;
	for (int i = 0; i < count && size <= (int)sizeof bytes; i++) {
		int fd = i % 2 ? STDERR_FILENO : STDOUT_FILENO, left = 1;
		memset(bytes, 'a' + i % 26, (size_t)size);
		if (write(fd, bytes, (size_t)size) != size)
			return EXIT_FAILURE;
		while (left > 0)
			if (ioctl(fd, FIONREAD, &left) < 0)
				return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
