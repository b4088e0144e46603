# SPDX-License-Identifier: Apache-2.0
# bash completion of roadrunner

_roadrunner() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local commands="run serve check explain inspect compile ps bench worker help"
    local run="-i --input -o --output --repeat --trace --json --no-cache --isolation --spin --tls-cert --tls-key --tls-ca --plain --network-only -v --verbose -q --quiet"
    local worker="--node --listen --tls-cert --tls-key --tls-ca --plain --network-only --spin --no-cache -v --verbose -q --quiet"

    local serve="-l --listen -r --route --admin --access-log --otlp --otlp-ratio --tls-cert --tls-key --tls-client-ca --node-cert --node-key --node-ca --node-plain --deadline --concurrency --queue --duplicates --config --callback --callback-net --callback-ca --max-body --max-memory --workflow-memory --max-header --max-connections --header-time --idle --min-rate --drain --threads --spin --isolation --no-cache -v --verbose -q --quiet"

    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$cur")
        return
    fi
    case $prev in
    -i | --input | -o | --output | --trace | --svg | --access-log | --tls-* | --node-cert | --node-key | --node-ca)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --isolation)
        mapfile -t COMPREPLY < <(compgen -W "process worker" -- "$cur")
        return
        ;;
    --repeat | --interval | --sizes | --spin | --node | -l | --listen | -r | --route | --admin | --otlp | --otlp-ratio | --deadline | --concurrency | --queue | \
        --duplicates | --max-body | --max-memory | --workflow-memory | --max-header | --max-connections | --header-time | --idle | \
        --min-rate | --drain | --threads)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        case $command in
        worker) mapfile -t COMPREPLY < <(compgen -W "$worker --help" -- "$cur") ;;
        run) mapfile -t COMPREPLY < <(compgen -W "$run --help" -- "$cur") ;;
        serve) mapfile -t COMPREPLY < <(compgen -W "$serve --help" -- "$cur") ;;
        check | inspect) mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur") ;;
        explain) mapfile -t COMPREPLY < <(compgen -W "--json --svg --help" -- "$cur") ;;
        compile) mapfile -t COMPREPLY < <(compgen -W "-q --quiet -o --output --help" -- "$cur") ;;
        ps) mapfile -t COMPREPLY < <(compgen -W "--json --interval --help" -- "$cur") ;;
        bench) mapfile -t COMPREPLY < <(compgen -W "--sizes --repeat --json --help" -- "$cur") ;;
        esac
        return
    fi
    compopt -o filenames
    case $command in
    help) mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur") ;;
    check | explain | serve) mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.y?(a)ml' -- "$cur") ;;
    inspect) mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.wasm' -- "$cur") ;;
    bench | ps) ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}
complete -F _roadrunner roadrunner
