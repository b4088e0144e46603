# SPDX-License-Identifier: Apache-2.0
# bash completion of roadrunner

_roadrunner() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local commands="run check explain inspect compile bench worker help"
    local run="-i --input -o --output --repeat --trace --json --no-cache --isolation --spin --tls-cert --tls-key --tls-ca --plain --network-only -v --verbose -q --quiet"
    local worker="--node --listen --tls-cert --tls-key --tls-ca --plain --network-only --spin --no-cache -v --verbose -q --quiet"

    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$cur")
        return
    fi
    case $prev in
    -i | --input | -o | --output | --trace | --svg | --tls-cert | --tls-key | --tls-ca)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --isolation)
        mapfile -t COMPREPLY < <(compgen -W "process worker" -- "$cur")
        return
        ;;
    --repeat | --sizes | --spin | --node | --listen)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        case $command in
        worker) mapfile -t COMPREPLY < <(compgen -W "$worker --help" -- "$cur") ;;
        run) mapfile -t COMPREPLY < <(compgen -W "$run --help" -- "$cur") ;;
        check | inspect) mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur") ;;
        explain) mapfile -t COMPREPLY < <(compgen -W "--json --svg --help" -- "$cur") ;;
        compile) mapfile -t COMPREPLY < <(compgen -W "-q --quiet --help" -- "$cur") ;;
        bench) mapfile -t COMPREPLY < <(compgen -W "--sizes --repeat --json --help" -- "$cur") ;;
        esac
        return
    fi
    compopt -o filenames
    case $command in
    help) mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur") ;;
    check | explain) mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.y?(a)ml' -- "$cur") ;;
    inspect) mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.wasm' -- "$cur") ;;
    bench) ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}
complete -F _roadrunner roadrunner
