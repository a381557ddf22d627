#!/usr/bin/env bash
# Installs the real servers that the tests of connectors start: Debian's packages by apt-get, and Kafka's
# jars by Maven into ${XDG_CACHE_HOME:-~/.cache}/velo-test-servers. No service is started or enabled.
#
#     tools/test-servers.sh          # all of them
#     tools/test-servers.sh kafka    # one of them
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian starts a service when its package is installed, unless this file forbids it.
packages() {
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
    fi
    apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

# A package enables its service for the next start of the machine.
off() {
    if command -v systemctl > /dev/null; then systemctl disable "$1" > /dev/null 2>&1 || true; fi
}

install_kafka() {
    command -v java > /dev/null || packages default-jdk-headless
    command -v mvn > /dev/null || packages maven
    python3 tools/kafka_broker.py install
}

install_mosquitto() {
    packages mosquitto
    off mosquitto
}

install_redis() {
    command -v redis-server > /dev/null && return
    packages redis-server
    off redis-server
}

install_rabbitmq() {
    packages rabbitmq-server
    off rabbitmq-server
}

install_postgres() {
    packages postgresql
    off postgresql
}

for server in "${@:-kafka mosquitto redis rabbitmq postgres}"; do
    for name in $server; do
        "install_$name"
    done
done
