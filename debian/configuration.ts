/** What the package sets in the configuration that docs/ shows, and leaves to its user to change. */
const SET: Readonly<Record<string, string>> = {
  "allow-user": '["jobs"]',
  cgroup: '"/sys/fs/cgroup/jobs.slice/jobs.service"',
  "health-socket": '"/run/jobs/health.sock"',
};

/**
 * Returns /etc/jobs/jobsd.toml as the package brings it.
 *
 * @param shown the configuration that docs/ shows, with all keys
 */
export function configuration(shown: string): string {
  return Object.entries(SET).reduce((text, [name, value]) => {
    const line = new RegExp(`^#?${name} = .*$`, "m");
    if (!line.test(text)) throw new Error(`the configuration shows no key ${name}`);
    return text.replace(line, `${name} = ${value}`);
  }, shown);
}
