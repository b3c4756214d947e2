import { EXIT } from "../tell/exit.ts";
import { print, printJson, working } from "../tell/output.ts";
import { parseCount, UsageError } from "../line/parse.ts";
import type { Given } from "../line/program.ts";
import type { Line } from "../tell/text.ts";
import * as certs from "./certs.ts";

/** `jobsctl certs init|request|sign|list|renew|revoke|crl|inspect`. */
export async function certificates(given: Given): Promise<number> {
  const slow = keysOf(given);
  const { value, text } = await (slow === undefined ? make(given) : working(`making ${slow}`, () => make(given)));
  await (given.text("output") === "json" ? printJson(value) : print(text));
  return EXIT.ok;
}

/** The RSA keys that a command makes, which takes seconds; undefined for none. */
function keysOf(given: Given): string | undefined {
  if (given.command === "certs init") return "four RSA keys";
  const one = given.command === "certs request" || (given.command === "certs renew" && given.on("new-key"));
  return one ? "an RSA key" : undefined;
}

async function make(given: Given): Promise<{ readonly value: unknown; readonly text: readonly Line[] }> {
  const [operand = ""] = given.operands;
  switch (given.command) {
    case "certs init": {
      const value = await certs.init({ out: required(given, "out"), ...keys(given), days: number(given, "days") });
      return { value, text: certs.formatInit(value) };
    }
    case "certs request": {
      const value = await certs.request({ name: operand, out: required(given, "out"), ...keys(given) });
      return { value, text: certs.formatRequest(value) };
    }
    case "certs sign": {
      const value = await certs.sign({
        csr: operand,
        ...authority(given),
        role: given.text("role"),
        hosts: hosts(given),
        days: number(given, "days"),
        minBits: number(given, "min-bits"),
        out: given.text("out"),
        force: given.on("force"),
      });
      return { value, text: certs.formatSign(value) };
    }
    case "certs list": {
      const value = await certs.list({ ca: required(given, "ca") });
      return { value, text: certs.formatList(value) };
    }
    case "certs renew": {
      const value = await certs.renew({
        file: operand,
        ...authority(given),
        oldCa: given.text("old-ca"),
        newKey: given.on("new-key"),
        bits: number(given, "bits"),
        days: number(given, "days"),
        out: given.text("out"),
        force: given.on("force"),
      });
      return { value, text: certs.formatRenew(value) };
    }
    case "certs revoke": {
      const how = { reason: given.text("reason"), force: given.on("force") };
      const value = await certs.revoke({ certificate: operand, ...authority(given), ...how });
      return { value, text: certs.formatRevoke(value) };
    }
    case "certs crl": {
      const value = await certs.crl({ ...authority(given), days: number(given, "days") });
      return { value, text: certs.formatCrl(value) };
    }
    default: {
      const value = await certs.inspect({ file: operand });
      return { value, text: certs.formatInspect(value) };
    }
  }
}

function authority(given: Given): { readonly ca: string; readonly caKey: string | undefined } {
  return { ca: required(given, "ca"), caKey: given.text("ca-key") };
}

function keys(given: Given): Pick<certs.RequestOptions, "hosts" | "bits" | "force"> {
  return { hosts: hosts(given), bits: number(given, "bits"), force: given.on("force") };
}

function hosts(given: Given): readonly string[] | undefined {
  const list = given.list("host");
  return list.length > 0 ? list : undefined;
}

function number(given: Given, name: string): number | undefined {
  const text = given.text(name);
  return text === undefined ? undefined : Number(parseCount(`--${name}`, text));
}

function required(given: Given, name: string): string {
  const text = given.text(name);
  if (text !== undefined) return text;
  throw new UsageError(`--${name} is missing: ${given.command} needs it`);
}
