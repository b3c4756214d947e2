import { createAuthority, sign, toPem } from "../../../certs/authority.ts";
import { generateKey, keyToPem } from "../../../certs/key.ts";
import type { Profile } from "../../../certs/profile.ts";
import { createRequest, parseRequest } from "../../../certs/request.ts";

const BITS = 2048;

/** A CA for tests; `ca` is its certificate. All PEM. */
export interface TestAuthority {
  readonly ca: string;
  issue(
    profile: Profile,
    options?: { hosts?: string[]; now?: Date; days?: number },
  ): Promise<{ cert: string; key: string }>;
}

/** Makes a CA whose life begins at `now`. All that it signs has one key, because keys are slow to make. */
export async function testAuthority(now?: Date): Promise<TestAuthority> {
  const [authority, key] = await Promise.all([createAuthority({ bits: BITS, ...(now && { now }) }), generateKey(BITS)]);
  return {
    ca: toPem(authority.certificate),
    async issue(profile, { hosts = profile === "worker" ? ["localhost", "127.0.0.1", "::1"] : [], ...life } = {}) {
      const request = await parseRequest(await createRequest(profile, key, hosts), profile);
      return { cert: await sign(authority, request, { profile, minBits: BITS, ...life }), key: keyToPem(key) };
    },
  };
}
