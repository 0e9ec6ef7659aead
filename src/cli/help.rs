//! The one screen that bare `everhook` shows, grouped as SURFACE.md section 2.

pub const HELP: &str = "\
everhook keeps apps alive and deploys the newest commit when a forge calls its webhook.

Look
  status [APP…]                what runs, since when, and why not where it does not (also ls, ps)
  logs [APP…]                  what apps wrote; -f follows, --since 1h, --grep RE, --previous run
  events [APP]                 every transition with its cause; -f follows
  history [APP]                deploys, newest first; history show ID: one with its steps and log
  deliveries [APP]             what the forges sent; deliveries show ID: one, redeliver ID: again
  audit [APP]                  who did what from where; --since 1h, --by NAME, --outcome refused
Apps
  start, stop, restart APP…    and wait until it is so; stop holds until start
  signal APP SIG               to the main process
  wait APP --for STATE         ready, stopped, failed, …
  exec APP -- CMD              as the app: its user, directory and environment
Deploy
  deploy APP [--rev REV]       shows the pipeline live; --dry-run: what it would do
  rollback APP [--to RELEASE]  to the release before, or this one
  cancel ID, approve ID        end a deploy, or let one go on that awaits approval
  freeze APP --why TEXT        start no deploy until unfreeze APP; rollbacks go on
Config
  check [--diff]               what is wrong, and where; what a reload would do
  reload                       apply the config, all or nothing
Server
  run                          be the supervisor
  shutdown [--now]             stop the apps, then the supervisor
  upgrade [--binary PATH]      run a newer everhook in its place; apps run on
  token create NAME --role R   a token for the API; also token list, token revoke NAME
  prune [-y]                   remove what is left of apps that are gone, after showing it
  serve DIR [--bind ADDR]      a small static file server

Options for all: -c, --config PATH · --socket PATH · -h, --help · -V, --version
`everhook help COMMAND` tells the rest. What lists takes --json. APP: blog, blog.2 or --all.
Exit: 0 done · 1 not so · 2 usage · 3 no supervisor · 4 no such thing · 5 not allowed · 6 timed out";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_on_one_screen() {
        assert!(HELP.lines().count() <= 40);
        for line in HELP.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
