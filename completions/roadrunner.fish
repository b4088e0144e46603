# SPDX-License-Identifier: Apache-2.0
# fish completion of roadrunner

set -l commands run check explain inspect compile bench help
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a run -d "run a workflow on an input"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a check -d "look for mistakes in a workflow"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a explain -d "show a workflow's graph"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a inspect -d "tell which tier a module gets"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a compile -d "compile modules ahead"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a bench -d "measure hand-offs"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -f -a help -d "help on a command"
complete -c roadrunner -n "not __fish_seen_subcommand_from $commands" -l version -d "versions"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -s i -l input -r -d "the input"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -s o -l output -r -d "the result"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -l repeat -x -d "run N times"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -l trace -r -d "write a trace"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -l no-cache -d "compile anew"
complete -c roadrunner -n "__fish_seen_subcommand_from run" -s v -l verbose -d "more messages"
complete -c roadrunner -n "__fish_seen_subcommand_from run compile" -s q -l quiet -d "errors only"
complete -c roadrunner -n "__fish_seen_subcommand_from run check explain inspect bench" -l json -d "as JSON"
complete -c roadrunner -n "__fish_seen_subcommand_from explain" -l svg -r -d "draw the graph"
complete -c roadrunner -n "__fish_seen_subcommand_from bench" -l sizes -x -d "payloads"
complete -c roadrunner -n "__fish_seen_subcommand_from bench" -l repeat -x -d "measurements"
complete -c roadrunner -l help -s h -d "help"
