// Sends one datagram to a UNIX socket, which Node cannot: sd_notify(3) is that. The module is a function of the socket's path,
// in which a leading @ stands for the abstract namespace, and of the text; it returns 0, or the errno of what failed.

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

typedef void *function(void *env, void *call);

extern int napi_create_function(void *env, const char *name, size_t length, function *called, void *data, void **made);
extern int napi_get_cb_info(void *env, void *call, size_t *count, void **arguments, void **self, void **data);
extern int napi_get_value_string_utf8(void *env, void *value, char *text, size_t room, size_t *length);
extern int napi_create_int32(void *env, int32_t number, void **made);
extern void *napi_register_module_v1(void *env, void *exports);

enum { MAX_TEXT = 4096 };

static int send_datagram(const char *path, size_t path_length, const char *text, size_t text_length)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	// A reader that is busy is waited for, and not for ever.
	const struct timeval patience = {.tv_sec = 1};

	if (path_length == 0 || path_length >= sizeof(address.sun_path))
		return ENAMETOOLONG;
	memcpy(address.sun_path, path, path_length);
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	const socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_length);
	const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return errno;
	int failed = 0;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    sendto(fd, text, text_length, MSG_NOSIGNAL, (const struct sockaddr *)&address, length) < 0)
		failed = errno;
	close(fd);
	return failed;
}

static void *notify(void *env, void *call)
{
	char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1], text[MAX_TEXT];
	void *arguments[2], *result = NULL;
	size_t count = 2, path_length = 0, text_length = 0;
	int failed = EINVAL;

	// A path that is too long fills the room, and is refused.
	if (napi_get_cb_info(env, call, &count, arguments, NULL, NULL) == 0 && count == 2 &&
	    napi_get_value_string_utf8(env, arguments[0], path, sizeof(path), &path_length) == 0 &&
	    napi_get_value_string_utf8(env, arguments[1], text, sizeof(text), &text_length) == 0)
		failed = send_datagram(path, path_length, text, text_length);
	napi_create_int32(env, failed, &result);
	return result;
}

// Node calls it when it loads this, and takes what is returned for the module.
void *napi_register_module_v1(void *env, void *exports)
{
	void *made = NULL;

	return napi_create_function(env, "notify", sizeof("notify") - 1, notify, NULL, &made) == 0 ? made : exports;
}
