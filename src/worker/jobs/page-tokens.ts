import { createCipheriv, createDecipheriv } from "node:crypto";

/** Page tokens: places in the journal that their reader cannot make out, because they count the jobs of all owners. */
export interface PageTokens {
  of(place: number): string;
  /** Undefined for a text that `of` did not return. */
  placeOf(token: string): number | undefined;
}

/** One block of AES, so that a place takes one, and no mode of operation is needed. */
const CIPHER = "aes-128-ecb";
const BLOCK_BYTES = 16;

/** @param secret 16 bytes, which tokens of an earlier daemon were made with, too */
export function pageTokens(secret: Buffer): PageTokens {
  return {
    of(place) {
      const block = Buffer.alloc(BLOCK_BYTES);
      block.writeBigUInt64BE(BigInt(place), BLOCK_BYTES / 2);
      return createCipheriv(CIPHER, secret, null).setAutoPadding(false).update(block).toString("base64url");
    },
    placeOf(token) {
      const block = Buffer.from(token, "base64url");
      if (block.length !== BLOCK_BYTES) return undefined;
      const plain = createDecipheriv(CIPHER, secret, null).setAutoPadding(false).update(block);
      const place = Number(plain.readBigUInt64BE(BLOCK_BYTES / 2));
      return plain.readBigUInt64BE(0) === 0n && Number.isSafeInteger(place) ? place : undefined;
    },
  };
}
