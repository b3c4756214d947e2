import { readFileSync } from "node:fs";
import { chmod, mkdir, mkdtempDisposable, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { unless } from "../testing/root.ts";
import { readTlsFiles } from "../../cli/line/connection.ts";
import { connect } from "../client/index.ts";
import { running } from "../server/testing/server.ts";
import { shell, withoutOpenssl } from "./testing/openssl.ts";

/** A root, an intermediate CA below it, and a certificate of each that is for both sides of a connection. */
const MAKE = `
key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
ca='basicConstraints=critical,CA:TRUE'
cat >leaf.ext <<'END'
subjectAltName = DNS:localhost,IP:127.0.0.1
1.2.840.10070.8.1 = ASN1:UTF8String:writer
END
echo "$ca" >ca.ext
sign() { openssl x509 -req -days 90 -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -extfile "$3.ext" -out "$1.crt"; }
request() { openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"; }
for name in root other mid leaf below; do key $name; done
for name in root other; do openssl req -x509 -days 90 -key $name.key -subj "/CN=$name" -addext "$ca" -out $name.crt; done
for name in mid leaf below; do request $name; done
sign mid root ca; sign leaf root leaf; sign below mid leaf

openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key; request rsa; sign rsa root leaf
openssl genpkey -quiet -algorithm ED25519 -out ed.key; request ed; sign ed root leaf
openssl ecparam -name secp384r1 -genkey -out sec1.key; request sec1; sign sec1 root leaf
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out small.key; request small; sign small root leaf
openssl ecparam -name secp256k1 -genkey -noout -out koblitz.key; request koblitz; sign koblitz root leaf

openssl rsa -traditional -in rsa.key -out pkcs1.key
openssl x509 -in root.crt -text -out text.crt
sed 's/$/\\r/' root.crt >crlf.crt
printf '\\357\\273\\277' | cat - root.crt >bom.crt
sed 's/^/    /' root.crt >indented.crt
{ printf %s "$(cat other.crt)"; cat root.crt; } >glued.crt
cat below.crt mid.crt >chain.crt
cat mid.crt below.crt >turned.crt
cat mid.crt root.crt >mid-root.crt
cat leaf.crt leaf.key >both.pem
for name in root leaf; do openssl x509 -in $name.crt -outform DER -out $name.der; done
openssl pkcs8 -topk8 -nocrypt -in leaf.key -outform DER -out pkcs8.der
openssl ec -in leaf.key -outform DER -out sec1.der
openssl rsa -traditional -in rsa.key -outform DER -out pkcs1.der

openssl pkcs8 -topk8 -in rsa.key -passout pass:x -out encrypted.key
{ echo comment; openssl rsa -traditional -aes256 -in rsa.key -passout pass:x; } >old-encrypted.key
cat leaf.key rsa.key >two.key
openssl pkcs12 -export -in leaf.crt -inkey leaf.key -passout pass:x -out bundle.p12
openssl crl2pkcs7 -nocrl -certfile root.crt -out root.p7b
openssl x509 -in root.crt -addtrust serverAuth -trustout -out trusted.crt
openssl pkey -in leaf.key -pubout -out public.key
sed '/END/d' root.crt >unended.crt
sed '3s/./!/' root.crt >typo.crt
sed '3d' root.crt >short.crt
iconv -t UTF-16 root.crt >utf16.crt
: >empty.crt
printf 'a note\\n' >note.txt
printf -- '-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaA==\\n-----END OPENSSH PRIVATE KEY-----\\n' >ssh.key
head -c 300000 /dev/zero >large.crt
chmod 600 *.key *.der *.pem note.txt root.crt
`;

type Files = { readonly ca?: string; readonly cert?: string; readonly key?: string };

const GOOD = { ca: "root.crt", cert: "leaf.crt", key: "leaf.key" };

describe("files that openssl has made", unless(withoutOpenssl), () => {
  let dir: string;
  beforeAll(async () => {
    const made = await mkdtempDisposable(join(tmpdir(), "jobs-pem-"));
    dir = made.path;
    await shell(MAKE, dir);
    await mkdir(join(dir, "directory"));
    await writeFile(join(dir, "group.key"), await readFile(join(dir, "leaf.key")), { mode: 0o600 });
    await chmod(join(dir, "group.key"), 0o640);
    return () => made.remove();
  });

  function read(files: Files) {
    const { ca, cert, key } = { ...GOOD, ...files };
    return readTlsFiles({ ca: join(dir, ca), cert: join(dir, cert), key: join(dir, key) });
  }

  describe("connect a client to a worker, as the files of both", () => {
    it.each<[string, Files]>([
      ["a certificate without more", {}],
      ["text before the PEM", { ca: "text.crt" }],
      ["CRLF", { ca: "crlf.crt" }],
      ["a byte order mark", { ca: "bom.crt" }],
      ["indented lines", { ca: "indented.crt" }],
      ["two CAs without a newline between them", { ca: "glued.crt" }],
      ["a CA in DER", { ca: "root.der" }],
      ["a certificate in DER", { cert: "leaf.der" }],
      ["certificate and key in one file", { cert: "both.pem", key: "both.pem" }],
      ["an intermediate behind the certificate, its root given", { cert: "chain.crt", key: "below.key" }],
      ["an intermediate in front of the certificate", { cert: "turned.crt", key: "below.key" }],
      ["an intermediate and its root as the CA", { ca: "mid-root.crt", cert: "below.crt", key: "below.key" }],
      ["an RSA key, PKCS #8", { cert: "rsa.crt", key: "rsa.key" }],
      ["an RSA key, PKCS #1", { cert: "rsa.crt", key: "pkcs1.key" }],
      ["an ECDSA key, SEC 1 with its parameters", { cert: "sec1.crt", key: "sec1.key" }],
      ["an Ed25519 key", { cert: "ed.crt", key: "ed.key" }],
      ["a key in DER, PKCS #8", { key: "pkcs8.der" }],
      ["a key in DER, PKCS #1", { cert: "rsa.crt", key: "pkcs1.der" }],
      ["a key in DER, SEC 1", { key: "sec1.der" }],
    ])("%s", async (_, files) => {
      const { ca, ...pair } = await read(files);
      await using server = await running({ ca: { cert: ca, key: "" }, server: pair });
      using client = connect({ server: `127.0.0.1:${server.port}`, ca, ...pair });
      expect((await client.list()).jobs).toHaveLength(1);
      expect(server.logged).toEqual([]);
    });
  });

  it("are taken by the library and by the server as they are, without the CLI", async () => {
    const [ca, cert, key] = ["bom.crt", "leaf.der", "sec1.der"].map((name) => readFileSync(join(dir, name)));
    if (!ca || !cert || !key) throw new Error("no files");
    await using server = await running(
      { ca: { cert: "", key: "" }, server: { cert: "", key: "" } },
      {},
      { tls: { ca, cert, key } },
    );
    using client = connect({ server: `localhost:${server.port}`, ca, cert, key });
    expect((await client.list()).jobs).toHaveLength(1);
    const encrypted = readFileSync(join(dir, "encrypted.key"));
    expect(() => connect({ server: "localhost:1", ca, cert, key: encrypted })).toThrow(
      "key:1: the private key is encrypted; openssl pkey -in key -out PLAIN.key decrypts it",
    );
  });

  describe("an intermediate CA without its root", () => {
    const below = { cert: "below.crt", key: "below.key" };

    it("is what a client may trust a worker by", async () => {
      const { ca, ...pair } = await read({ ...below, ca: "mid-root.crt" });
      await using server = await running({ ca: { cert: ca, key: "" }, server: pair });
      const { ca: alone } = await read({ ca: "mid.crt" });
      using client = connect({ server: `127.0.0.1:${server.port}`, ca: alone, ...pair });
      expect((await client.list()).jobs).toHaveLength(1);
    });

    it("is no CA for a worker, which says what to give", async () => {
      const { ca, ...pair } = await read({ ...below, ca: "mid.crt" });
      await expect(running({ ca: { cert: ca, key: "" }, server: pair })).rejects.toThrow(
        "ca: CN=mid is an intermediate CA, and the CA that signed it, CN=root, is not given: put its certificate into the same file",
      );
    });
  });

  describe("are refused before anything is done, with file, line and what to do:", () => {
    it.each<[string, Files, string]>([
      ["no file", { ca: "none.crt" }, "none.crt: no such file or directory"],
      ["a directory", { ca: "directory" }, "directory: is a directory; a file is needed"],
      ["a directory for a key", { key: "directory" }, "directory: is a directory; a file is needed"],
      ["a file that is too large", { cert: "large.crt" }, "large.crt: is over 256 KiB"],
      ["an empty file", { ca: "empty.crt" }, "empty.crt: is empty; a PEM file with -----BEGIN CERTIFICATE-----"],
      ["a text", { cert: "note.txt" }, "note.txt: holds nothing in PEM, no certificate"],
      ["a key for a certificate", { cert: "leaf.key" }, "leaf.key: holds PRIVATE KEY (line 1), no certificate"],
      ["a certificate for a key", { key: "root.crt" }, "root.crt: holds CERTIFICATE (line 1), no private key"],
      ["a public key", { key: "public.key" }, "public.key: holds PUBLIC KEY (line 1), no private key"],
      ["a request", { cert: "leaf.csr" }, "has to be signed first: jobsctl certs sign"],
      ["UTF-16", { ca: "utf16.crt" }, "utf16.crt: is UTF-16; save it as plain text"],
      ["PEM without its end", { ca: "unended.crt" }, "unended.crt:1: the CERTIFICATE that begins here has no -----END"],
      ["a wrong character", { ca: "typo.crt" }, "typo.crt:3: is not base64, in the CERTIFICATE of line 1"],
      ["a lost line", { ca: "short.crt" }, "short.crt:1: the certificate is damaged"],
      [
        "PKCS #12",
        { cert: "bundle.p12" },
        "bundle.p12: is not a certificate in DER (of a PKCS #12 file (.p12, .pfx) openssl",
      ],
      ["PKCS #7", { ca: "root.p7b" }, "root.p7b:1: holds a PKCS7; openssl pkcs7 -print_certs -in"],
      ["OpenSSL's own form", { ca: "trusted.crt" }, "trusted.crt:1: holds a TRUSTED CERTIFICATE; openssl x509 -in"],
      ["an encrypted key", { key: "encrypted.key" }, "encrypted.key:1: the private key is encrypted; openssl pkey -in"],
      ["an old encrypted key", { key: "old-encrypted.key" }, "old-encrypted.key:2: the private key is encrypted"],
      ["two keys", { key: "two.key" }, "two.key: holds several private keys, in lines 1, 6; give a file with one"],
      ["an SSH key", { key: "ssh.key" }, "ssh.key:1: is a private key in OpenSSH's own format; ssh-keygen -p -m PEM"],
      [
        "RSA of 1024 bits",
        { cert: "small.crt", key: "small.key" },
        "small.crt:1: CN=small has an RSA key of 1024 bits; RSA of 2048",
      ],
      [
        "a curve of no use",
        { cert: "koblitz.crt", key: "koblitz.key" },
        "koblitz.crt:1: CN=koblitz has a key on the curve secp256k1",
      ],
      ["another's key", { key: "rsa.key" }, "rsa.key: the private key does not belong to the certificate of"],
      [
        "a leaf for a CA",
        { ca: "leaf.crt" },
        "leaf.crt:1: CN=leaf is not a CA's certificate (CA:TRUE and keyCertSign)",
      ],
      [
        "a key that its group may read",
        { key: "group.key" },
        "others can read this private key (mode 0640): chmod 600",
      ],
    ])("%s", async (_, files, message) => {
      await expect(read(files)).rejects.toThrow(message);
    });
  });
});
