DROP TABLE sessions;
DROP TABLE applications;
