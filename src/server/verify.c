// Makes OpenSSL stop at the first fault of a certificate chain. Node tells it to go on after every fault, and looks at the
// result afterwards, so that a stranger's chain, which leads to no trusted authority, had each of its signatures verified
// on the event loop: 430 ms for 90 certificates. Every function here is OpenSSL's, out of Node's binary: see decision 11.

typedef struct ssl_ctx_st SSL_CTX;
typedef struct x509_store_ctx_st X509_STORE_CTX;
typedef struct crypto_ex_data_st CRYPTO_EX_DATA;
typedef void new_func(void *parent, void *ptr, CRYPTO_EX_DATA *data, int index, long argl, void *argp);

enum {
	INDEX_SSL_CTX = 1,      // CRYPTO_EX_INDEX_SSL_CTX, openssl/crypto.h
	SET_MAX_CERT_LIST = 51, // SSL_CTRL_SET_MAX_CERT_LIST, openssl/ssl.h
	MAX_CHAIN_BYTES = 32 * 1024,
};

extern int CRYPTO_get_ex_new_index(int class, long argl, void *argp, new_func *made, void *copied, void *freed);
extern long SSL_CTX_ctrl(SSL_CTX *context, int command, long number, void *pointer);
extern void SSL_CTX_set_cert_verify_callback(SSL_CTX *context, int (*verify)(X509_STORE_CTX *, void *), void *argp);
extern void X509_STORE_CTX_set_verify_cb(X509_STORE_CTX *chain, int (*found)(int, X509_STORE_CTX *));
extern int X509_verify_cert(X509_STORE_CTX *chain);
extern int napi_throw_error(void *env, const char *code, const char *message);
extern void *napi_register_module_v1(void *env, void *exports);

// Goes on where nothing was wrong.
static int as_found(int ok, X509_STORE_CTX *chain)
{
	(void)chain;
	return ok;
}

// The handshake goes on after a fault, which stays in `chain` and is Node's authorizationError. It ends where OpenSSL could
// not look.
static int verify(X509_STORE_CTX *chain, void *argp)
{
	(void)argp;
	X509_STORE_CTX_set_verify_cb(chain, as_found);
	return X509_verify_cert(chain) >= 0;
}

static void made(void *parent, void *ptr, CRYPTO_EX_DATA *data, int index, long argl, void *argp)
{
	(void)ptr, (void)data, (void)index, (void)argl, (void)argp;
	SSL_CTX_set_cert_verify_callback(parent, verify, 0);
	SSL_CTX_ctrl(parent, SET_MAX_CERT_LIST, MAX_CHAIN_BYTES, 0);
}

// Node calls it when it loads this. Every SSL_CTX that the process makes from then on is changed.
void *napi_register_module_v1(void *env, void *exports)
{
	static int registered;
	if (!registered && CRYPTO_get_ex_new_index(INDEX_SSL_CTX, 0, 0, made, 0, 0) < 0) {
		napi_throw_error(env, 0, "OpenSSL has no room for one more index");
		return exports;
	}
	registered = 1;
	return exports;
}
