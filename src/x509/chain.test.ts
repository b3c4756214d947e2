import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { createSecureServer } from "node:http2";
import { mkdtempDisposable, readFile, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { unless } from "../testing/root.ts";
import { diagnose } from "../client/diagnose.ts";
import { problemsOf, readTls } from "../server/pem.ts";
import { until } from "../testing/processes.ts";
import { running } from "../server/testing/server.ts";
import { shell, withoutOpenssl } from "./testing/openssl.ts";

/** Chains from a root, each with one fault; a leaf is for both sides of a connection. */
const MAKE = `
CA='basicConstraints=critical,CA:TRUE'
LEAF='subjectAltName=DNS:localhost,IP:127.0.0.1
1.2.840.10070.8.1=ASN1:UTF8String:writer'
# make NAME ISSUER EXTENSIONS OPTION...: a key, unless there is one, and a certificate, of which NAME.pem has the chain.
make() {
  name=$1 issuer=$2; echo "$3" >$name.ext; shift 3
  [ -e $name.key ] || openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $name.key
  openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
  openssl x509 -req -in $name.csr -CA $issuer.crt -CAkey $issuer.key -CAcreateserial -extfile $name.ext "$@" -out $name.crt
  cat $name.crt >$name.pem
  case $issuer in *root) ;; *) cat $issuer.pem >>$name.pem ;; esac
}
# root NAME SUBJECT OPTION...
root() {
  name=$1 subject=$2; shift 2; echo "$CA" >$name.ext
  [ -e $name.key ] || openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $name.key
  openssl req -new -key $name.key -subj "/CN=$subject" -out $name.csr
  openssl x509 -req -in $name.csr -signkey $name.key -extfile $name.ext "$@" -out $name.crt
}
rsa() { openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:$2 -out $1.key; }

root root root -days 99; root old-root old -days -1; root stranger-root root -days 99
CA="$CA,pathlen:0" root short-root short -days 99
make good root "$LEAF" -days 99
make expired root "$LEAF" -days -1
make old-mid root "$CA" -days -1; make below-old-mid old-mid "$LEAF" -days 99
make below-old-root old-root "$LEAF" -days 99
make soon-mid root "$CA" -days 20; make below-soon-mid soon-mid "$LEAF" -days 99
make mid root "$CA" -days 99; make below-mid mid "$LEAF" -days 99; cp below-mid.crt orphan.pem; cp below-mid.key orphan.key
make below-short-mid short-root "$CA" -days 99; make below-short below-short-mid "$LEAF" -days 99
make stranger stranger-root "$LEAF" -days 99
root self self -days 99; cp self.crt self.pem
make server root "$LEAF
extendedKeyUsage=serverAuth" -days 99
make client root "$LEAF
extendedKeyUsage=clientAuth" -days 99
make enciphers root "$LEAF
keyUsage=keyEncipherment" -days 99
make server-mid root "$CA
extendedKeyUsage=serverAuth" -days 99; make below-server-mid server-mid "$LEAF" -days 99
make false-mid root basicConstraints=critical,CA:FALSE -days 99; make below-false-mid false-mid "$LEAF" -days 99
make foreign stranger-root 'extendedKeyUsage=clientAuth' -days 99; make past root 'extendedKeyUsage=clientAuth' -days -1
make nameless root 1.2.840.10070.8.1=ASN1:UTF8String:writer -days 99
make elsewhere root subjectAltName=DNS:elsewhere.example -days 99
make critical root "subjectAltName=IP:127.0.0.1
1.2.840.10070.8.1=critical,ASN1:UTF8String:writer" -days 99
rsa weak 1024; make weak root "$LEAF" -days 99
make sha1 root "$LEAF" -days 99 -sha1
make sha1-mid root "$CA" -days 99 -sha1; make below-sha1-mid sha1-mid "$LEAF" -days 99
rsa weak-mid 1024; make weak-mid root "$CA" -days 99; make below-weak-mid weak-mid "$LEAF" -days 99

mkdir -p early; : >early/index
cat >early.cnf <<'END'
[ca]
default_ca = early
[early]
database = early/index
new_certs_dir = early
rand_serial = yes
default_md = sha256
policy = names
[names]
commonName = supplied
END
openssl ca -batch -notext -config early.cnf -cert root.crt -keyfile root.key -extfile good.ext \\
  -startdate 20400101000000Z -enddate 20410101000000Z -in good.csr -out early.pem
cp good.key early.key
`;

interface Row {
  readonly cert: string;
  /** root.crt when absent. */
  readonly ca?: string;
  /** The reason that a client gives of a worker, without "server-"; and what it says of it. */
  readonly server?: readonly [string, string | RegExp];
  /** The same of its own, without "own-"; and the reason in the audit log. */
  readonly own?: readonly [string, string | RegExp, RegExp];
}

const DATE = String.raw`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z`;

const ROWS: readonly (readonly [string, Row])[] = [
  ["nothing", { cert: "good" }],
  ["nothing, with an intermediate", { cert: "below-mid" }],
  [
    "that it has expired",
    both("expired", "expired", new RegExp(`CN=expired\\) expired at ${DATE}`), /^CERT_HAS_EXPIRED$/),
  ],
  [
    "that its intermediate has expired, with its own date",
    both(
      "below-old-mid",
      "expired",
      new RegExp(`the intermediate certificate \\(CN=old-mid\\) expired at ${DATE}`),
      /^CERT_HAS_EXPIRED$/,
    ),
  ],
  [
    "that its CA has expired, with its own date",
    {
      ca: "old-root.crt",
      ...both(
        "below-old-root",
        "expired",
        new RegExp(`the CA's certificate \\(CN=old\\) expired at ${DATE}`),
        /^CERT_HAS_EXPIRED$/,
      ),
    },
  ],
  [
    "that it is of the future",
    both("early", "not-yet-valid", "(CN=good) is valid only from 2040-01-01T00:00:00.000Z", /^CERT_NOT_YET_VALID$/),
  ],
  [
    "that it is for the other side, as a client's",
    { cert: "client", server: ["purpose", "(CN=client) is not for servers"] },
  ],
  [
    "that it is for the other side, as a worker's",
    { cert: "server", own: ["purpose", "(CN=server) is not for clients", /^INVALID_PURPOSE$/] },
  ],
  [
    "that its intermediate is for the other side",
    {
      cert: "below-server-mid",
      own: ["purpose", "the intermediate certificate (CN=server-mid) is not for clients", /^INVALID_PURPOSE$/],
    },
  ],
  [
    "that its signature is weak",
    both("sha1", "weak", "(CN=sha1) is signed with ecdsa-with-SHA1", /^CERTIFICATE_WEAK_SIGNATURE$/),
  ],
  [
    "that its intermediate's signature is weak",
    both("below-sha1-mid", "weak", "(CN=sha1-mid) is signed with ecdsa-with-SHA1", /^CERTIFICATE_WEAK_SIGNATURE$/),
  ],
  ["that its key is weak", { cert: "weak", server: ["weak", "(CN=weak) has an RSA key of 1024 bits"] }],
  [
    "that its intermediate's key is weak",
    { cert: "below-weak-mid", server: ["weak", "(CN=weak-mid) has an RSA key of 1024 bits"] },
  ],
  [
    "that its key is for encipherment alone, as a worker's may be",
    { cert: "enciphers", own: ["purpose", "(CN=enciphers) is not for clients", /^INVALID_PURPOSE$/] },
  ],
  [
    "that its intermediate is missing",
    both(
      "orphan",
      "untrusted",
      "(CN=below-mid) is signed by CN=mid, whose certificate is neither given nor sent along",
      /^UNABLE_TO/,
    ),
  ],
  ["that its intermediate is no CA", both("below-false-mid", "chain", "(CN=false-mid) is not a CA's", /^INVALID_CA$/)],
  [
    "that a CA allows no other below it",
    {
      ca: "short-root.crt",
      ...both("below-short", "chain", "(CN=short) allows 0 CAs below it (pathlen), and there are 1", /^PATH_LENGTH/),
    },
  ],
  [
    "that another CA of the name signed it",
    both("stranger", "untrusted", "(CN=stranger) is signed by another CA of the same name, CN=root", /./),
  ],
  [
    "that another CA of the name signed it, which comes before its purpose",
    both("foreign", "untrusted", "(CN=foreign) is signed by another CA of the same name, CN=root", /./),
  ],
  ["that it has expired, which comes before its purpose", both("past", "expired", "(CN=past) expired at", /^CERT_HAS/)],
  [
    "that it is signed by itself",
    both("self", "untrusted", "(CN=self) is signed by itself, and not by the CA", /SELF_SIGNED/),
  ],
  [
    "that its role is critical",
    both(
      "critical",
      "chain",
      "(CN=critical) has a role extension that is critical",
      /^CERTIFICATE_CRITICAL_EXTENSION$/,
    ),
  ],
  [
    "that it has no name but a common name",
    {
      cert: "nameless",
      server: ["name", "(CN=nameless) has no subject alternative name, and a common name does not count"],
    },
  ],
  ["that it is made out to others", { cert: "elsewhere", server: ["name", "is made out to DNS:elsewhere.example"] }],
];

function both(cert: string, kind: string, says: string | RegExp, audit: RegExp): Row {
  return { cert, server: [kind, says], own: [kind, says, audit] };
}

describe("of a certificate that openssl has made", unless(withoutOpenssl), () => {
  let dir: string;
  const text = (name: string): Promise<string> => readFile(join(dir, name), "utf8");
  const pair = async (name: string) => ({ cert: await text(`${name}.pem`), key: await text(`${name}.key`) });
  beforeAll(async () => {
    const made = await mkdtempDisposable(join(tmpdir(), "jobs-chain-"));
    dir = made.path;
    await shell(MAKE, dir);
    return () => made.remove();
  });

  it.each(ROWS)("a client is told %s, where it is a worker's", async (_, { cert, ca = "root.crt", server }) => {
    // As OpenSSL lets a worker do that asks for it: the fault is in what the client sees.
    const options = { ...(await pair(cert)), ciphers: "DEFAULT@SECLEVEL=0", minVersion: "TLSv1.3" as const };
    const listener = createSecureServer(options).on("error", () => undefined);
    listener.listen(0, "127.0.0.1");
    await once(listener, "listening");
    const address: AddressInfo | string | null = listener.address();
    const port = typeof address === "object" && address ? address.port : 0;
    const own = { ...(await pair("good")), ca: await text(ca) };
    const diagnosis = await diagnose({ server: `127.0.0.1:${port}`, ...own }, 2_000);
    listener.close();
    if (!server) expect(["answers", "own-untrusted"]).toContain(diagnosis.reason);
    else expect(diagnosis).toMatchObject({ reason: `server-${server[0]}`, message: matching(server[1]) });
  });

  it.each(ROWS.filter(usable))(
    "a client is told %s, where it is its own",
    async (_, { cert, ca = "root.crt", own }) => {
      const authority = await text(ca);
      await using worker = await running({
        ca: { cert: `${authority}${await text("root.crt")}`, key: "" },
        server: await pair("good"),
      });
      const given = { ...(await pair(cert)), ca: `${authority}${await text("root.crt")}` };
      const diagnosis = await diagnose({ server: `127.0.0.1:${worker.port}`, ...given }, 2_000);
      if (!own) {
        expect(diagnosis).toMatchObject({ reason: "answers" });
        return;
      }
      expect(diagnosis).toMatchObject({ reason: `own-${own[0]}`, message: matching(own[1]) });
      await until(() => worker.audit.length > 0, "the refusal is recorded");
      expect(worker.audit[0]).toMatchObject({ reason: expect.stringMatching(own[2]) });
    },
  );

  it.each(ROWS.filter(usable).filter(([, { cert }]) => cert !== "elsewhere"))(
    "a worker is warned %s, where it is its own",
    async (_, { cert, ca = "root.crt", server }) => {
      const problems = problemsOf(readTls({ ca: await text(ca), ...(await pair(cert)) })).map(({ message }) => message);
      if (!server) expect(problems).toEqual([]);
      else expect(problems).toContainEqual(matching(server[1]));
    },
  );

  it("a worker is warned of what ends within 30 days anywhere in its chain, and of each of its CAs", async () => {
    const cas = `${await text("root.crt")}${await text("old-root.crt")}`;
    const problems = problemsOf(readTls({ ca: cas, ...(await pair("below-soon-mid")) }));
    expect(problems.map(({ message }) => message.replace(/20\d\d-.*Z/, "DATE"))).toEqual([
      "the CA's certificate (CN=soon-mid) expires at DATE",
      "the CA's certificate (CN=old) expired at DATE: clients that it signed are refused",
    ]);
  });

  it("a worker refuses one whose chain cannot be read, and goes on", async () => {
    await using worker = await running({ ca: { cert: await text("root.crt"), key: "" }, server: await pair("good") });
    const root = new X509Certificate(await text("root.crt")).raw;
    // id-ecPublicKey, made to what nobody knows.
    root[root.indexOf(Buffer.from("2a8648ce3d0201", "hex")) + 6] = 0x7f;
    const damaged = `-----BEGIN CERTIFICATE-----\n${root.toString("base64")}\n-----END CERTIFICATE-----\n`;
    await writeFile(join(dir, "damaged.crt"), damaged);
    await shell(
      `openssl s_client -connect 127.0.0.1:${worker.port} -cert sha1.crt -key sha1.key -cert_chain damaged.crt -alpn h2 -cipher DEFAULT@SECLEVEL=0 </dev/null >s_client.txt 2>&1 || :`,
      dir,
    );
    await until(() => worker.audit.length > 0, "the refusal is recorded");
    expect(worker.audit).toMatchObject([{ reason: "CERTIFICATE_WEAK_SIGNATURE", presented: { name: "sha1" } }]);
    const own = { ...(await pair("good")), ca: await text("root.crt") };
    expect(await diagnose({ server: `127.0.0.1:${worker.port}`, ...own })).toMatchObject({ reason: "answers" });
  });
});

/** Weak keys are refused as the own ones before anything is sent: pem.test.ts. */
function usable([, { cert }]: (typeof ROWS)[number]): boolean {
  return !cert.includes("weak");
}

function matching(what: string | RegExp): unknown {
  return typeof what === "string" ? expect.stringContaining(what) : expect.stringMatching(what);
}
