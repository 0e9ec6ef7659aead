// Signatures by the libraries that others send or check webhooks with, for tests/hook_fixtures.rs:
//
//     npm install --prefix /tmp/vectors @octokit/webhooks-methods@6.0.0 standardwebhooks@1.1.1
//     node tests/vectors/make.mjs /tmp/vectors > tests/vectors/signatures.json
//
// Without a second argument the same bodies are signed with fixed secrets and times, so what comes out
// is always the same; with `now` they are signed for this moment.
import { createRequire } from "node:module";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [installed, when] = process.argv.slice(2);
const require = createRequire(join(installed, "package.json"));
const octokit = join(installed, "node_modules/@octokit/webhooks-methods/dist-node/index.js");
const { sign } = await import(pathToFileURL(octokit));
const { Webhook } = require("standardwebhooks");

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "../fixtures");
const at = when === "now" ? new Date(Math.floor(Date.now() / 1000) * 1000) : new Date("2026-03-28T12:00:00Z");
const hushed = "s3cret mit Ümlaut und 🦀";
const signing = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const vectors = [];
const add = (dialect, secret, fixture, headers) => vectors.push({ dialect, secret, fixture, at: at.getTime(), headers });

for (const [dialect, fixture, header, prefixed] of [
  ["github", "github/push.0.json", "x-hub-signature-256", true],
  ["github", "github/release.1.json", "x-hub-signature-256", true],
  ["gitea", "gitea/push-event.json", "x-gitea-signature", false],
  ["forgejo", "gitea/push-event.json", "x-forgejo-signature", false],
  ["gogs", "gogs/push-event.json", "x-gogs-signature", false],
  ["bitbucket_cloud", "bitbucket/repo-push.json", "x-hub-signature", true],
  ["bitbucket_data_center", "bitbucket-server/repo-refs-changed.json", "x-hub-signature", true],
]) {
  const signature = await sign(hushed, readFileSync(join(fixtures, fixture), "utf8"));
  add(dialect, hushed, fixture, { [header]: prefixed ? signature : signature.replace("sha256=", "") });
}

for (const [dialect, fixture] of [["standard_webhooks", "gitea/push-event.json"], ["gitlab", "gitlab/push-event.json"]]) {
  const id = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W";
  const signature = new Webhook(signing).sign(id, at, readFileSync(join(fixtures, fixture), "utf8"));
  const timestamp = String(Math.floor(at.getTime() / 1000));
  add(dialect, signing, fixture, { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature });
}

// Gitee publishes no library, only these lines in other languages.
const stamp = String(at.getTime());
const token = createHmac("sha256", hushed).update(`${stamp}\n${hushed}`).digest("base64");
for (const shown of [token, encodeURIComponent(token)]) {
  add("gitee", hushed, "gitea/push-event.json", { "x-gitee-token": shown, "x-gitee-timestamp": stamp });
}
process.stdout.write(JSON.stringify(vectors, null, 1) + "\n");
