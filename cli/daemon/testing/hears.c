// Hears what is told to NOTIFY_SOCKET, as systemd does: hears PATH, where a leading @ is the abstract namespace. Prints "ready",
// and of each datagram the number of the process that sent it and its lines, with a blank line behind them.

#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const size_t length = argc == 2 ? strlen(argv[1]) : 0;
	const int on = 1, fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (length == 0 || length >= sizeof(address.sun_path) || fd < 0)
		return 2;
	memcpy(address.sun_path, argv[1], length);
	if (argv[1][0] == '@')
		address.sun_path[0] = '\0';
	if (bind(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return 1;
	puts("ready");
	for (;;) {
		char text[4096], control[CMSG_SPACE(sizeof(struct ucred))];
		struct iovec piece = {.iov_base = text, .iov_len = sizeof(text)};
		struct msghdr message = {
			.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
		fflush(stdout);
		const ssize_t got = recvmsg(fd, &message, 0);
		const struct cmsghdr *sender = CMSG_FIRSTHDR(&message);
		if (got < 0 || sender == NULL)
			return 1;
		struct ucred credentials;
		memcpy(&credentials, CMSG_DATA(sender), sizeof(credentials));
		printf("PID=%d\n%.*s\n\n", (int)credentials.pid, (int)got, text);
	}
}
