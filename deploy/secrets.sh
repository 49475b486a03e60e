#!/bin/sh
# secrets FOLDER OWNER: the passwords of a new installation, one folder for each who has to know them.
#   rabbitmq/  the broker's configuration: its user and password
#   mongo/     the database's administrator, and the script that makes our user
#   penstock/  the URLs of both with our password in them, and Ray's token: mode 0400, of OWNER (user:group)
#   observe/   OWNER's: `penstock setup` leaves Prometheus' key there, once there is a repository that knows it
# What stands already is kept, for the servers remember the passwords that they were first started with.
set -eu
cd "$1"
umask 022
chown "$2" observe
if [ -e penstock/ray-token ]; then exit 0; fi

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
amqp=$(secret) mongo=$(secret)

cat >rabbitmq/10-penstock.conf <<END
default_user = penstock
default_pass = $amqp
log.console = true
END
secret >mongo/administrator
cat >mongo/penstock.js <<END
db.getSiblingDB("penstock").createUser({
  user: "penstock", pwd: "$mongo", roles: [{ role: "readWrite", db: "penstock" }]
})
END

umask 077
rm -f penstock/*
echo "amqp://penstock:$amqp@rabbitmq:5672/" >penstock/amqp-url
echo "mongodb://penstock:$mongo@mongo:27017/?authSource=penstock" >penstock/mongo-url
secret >penstock/new-token
chmod 400 penstock/*
chown "$2" penstock/*
mv penstock/new-token penstock/ray-token # last: it says that all is there
